package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// specText is a spec as inspect shows it.
func specText(t *testing.T, spec *swarmpb.ServiceSpec) string {
	t.Helper()
	return messageText(t, spec)
}

func messageText(t *testing.T, m proto.Message) string {
	t.Helper()
	var out strings.Builder
	if err := printJSON(&out, plainer{name: protoreflect.FieldDescriptor.JSONName}.message(m.ProtoReflect())); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestCreate_Flags_MakeTheSpec(t *testing.T) {
	t.Setenv("FROM_HERE", "here")
	env := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(env, []byte("# a comment\n\nFILE=1\nMODE=file\nFROM_HERE\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := start(t, false)
	var got strings.Builder
	for _, line := range []string{
		"whoami:v1",
		"--name web --replicas 3 -p mode=host,published=8080,target=80,protocol=udp -p 9090:90/tcp -p 70 -e MODE=prod -e FROM_HERE -e NOT_THERE -l a=1 -l b --container-label c=2 -w /srv -u 1000:1000 whoami:v1 serve --port 80 -d",
		"--env-file " + env + " -e MODE=flag nginx",
		`--mount type=bind,source=/src,target=/dst,readonly,bind-propagation=rslave,bind-create-src --mount 'type=volume,"source=a,b",dst=/v,volume-nocopy=false' --mount type=tmpfs,target=/t,tmpfs-size=64m,tmpfs-mode=1770 nginx`,
		"--limit-cpu 0.5 --limit-memory 200m --limit-pids -1 --reserve-cpu 0.000000001 --reserve-memory 1g --constraint node.role==worker --placement-pref spread=node.labels.zone --replicas-max-per-node 2 --priority -5 nginx",
		"--restart-condition on-failure --restart-delay 0s --restart-max-attempts 3 --restart-window 1h --stop-grace-period 1m --stop-signal SIGINT --read-only --init --no-new-privileges --hostname h --entrypoint 'sh -c \"a b\"' --cap-add NET_ADMIN --cap-drop ALL nginx",
		"--update-parallelism 0 --update-delay 10s --update-monitor 1m --update-failure-action rollback --update-max-failure-ratio 0.2 --update-order start-first --rollback-parallelism 2 --rollback-order stop-first --rollback-failure-action continue nginx",
		"--mode global nginx",
		"--generic-resource gpu=1 --generic-resource nvidia.com/gpu=2 --generic-resource licence --placement-strategy binpack --max-unavailable 2 --no-rebalance --constraint 'node.labels.zone in (a, b)' --constraint node.labels.cores>=16 nginx",
		"--max-unavailable 10% --placement-strategy spread nginx",
	} {
		args, err := splitWords(line)
		if err != nil {
			t.Fatal(err)
		}
		f.control.created = nil
		f.run(append([]string{"service", "create", "-d"}, args...)...)
		got.WriteString("$ swarmctl service create -d " + strings.ReplaceAll(line, env, "/env") + "\n")
		if f.control.created == nil {
			t.Fatalf("%s: nothing was created", line)
		}
		got.WriteString(specText(t, f.control.created) + "\n")
	}
	golden(t, "create_spec", got.String())
}

func TestUpdate_Flags_ChangeOnlyWhatTheySay(t *testing.T) {
	f := start(t, false)
	before := strings.Split(specText(t, f.control.services[0].Service.Spec), "\n")
	var got strings.Builder
	for _, line := range []string{
		"--image whoami:v2", "--replicas 0", "--force", "--args 'serve \"a b\"'", "--env-add MODE=test --env-add NEW=1 --env-rm LEVEL",
		"--label-rm tier --label-add team=ops", "--container-label-add x=y", "--publish-rm 80/tcp --publish-add mode=host,published=8081,target=80", "--publish-add mode=host,published=8080,target=81",
		"--mount-rm /data", "--mount-add type=bind,source=/srv,target=/data", "--constraint-rm node.labels.disk==ssd --constraint-add node.role==worker",
		"--placement-pref-add spread=node.labels.zone", "--cap-add chown", "--cap-drop CAP_NET_ADMIN --cap-drop KILL", "--limit-cpu 1", "--restart-condition any",
		"--generic-resource-add gpu=1 --generic-resource-add nvidia.com/gpu=2", "--placement-strategy binpack", "--placement-strategy default", "--max-unavailable 25%", "--max-unavailable 3 --no-rebalance",
		"--constraint-rm 'Node.Labels.disk == ssd' --constraint-add 'node.hostname =~ ^n[12]$'", "--constraint-add 'node.labels.disk == ssd' --constraint-add node.role!=manager",
		"--update-parallelism 1 --update-delay 0s", "--priority 10", "--user ''", "--init=false", "--entrypoint /bin/serve",
	} {
		args, err := splitWords(line)
		if err != nil {
			t.Fatal(err)
		}
		f.control.updated = nil
		if o := f.run(append(append([]string{"service", "update", "-d"}, args...), "web")...); o.code != 0 {
			t.Fatalf("%s: %+v", line, o)
		}
		got.WriteString("$ swarmctl service update -d " + line + " web\n" + changedLines(before, strings.Split(specText(t, f.control.updated[0]), "\n")) + "\n")
	}
	golden(t, "update_spec", got.String())
}

// changedLines is the middle part in which two texts differ.
func changedLines(before, after []string) string {
	for len(before) > 0 && len(after) > 0 && before[0] == after[0] {
		before, after = before[1:], after[1:]
	}
	for len(before) > 0 && len(after) > 0 && before[len(before)-1] == after[len(after)-1] {
		before, after = before[:len(before)-1], after[:len(after)-1]
	}
	var out strings.Builder
	for _, l := range before {
		out.WriteString("-" + l + "\n")
	}
	for _, l := range after {
		out.WriteString("+" + l + "\n")
	}
	return out.String()
}

func TestValues_AnyText_NeverPanics(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		text := rapid.StringMatching(`[a-z0-9=:,/.\-" ]{0,40}|(type|target|mode|published|protocol|name)=[a-z0-9,=\-]{0,20}|[0-9]{1,5}-[0-9]{1,5}:[0-9]{1,5}(-[0-9]{1,5})?`).Draw(r, "text")
		if p, err := parsePublish(text); err == nil {
			if len(p.ports) == 0 || len(p.ports) > swarmpb.MaxPorts {
				r.Errorf("port %q: %d ports", text, len(p.ports))
			}
			for _, port := range p.ports {
				if port.TargetPort < 1 || port.TargetPort > swarmpb.MaxPort || port.PublishedPort > swarmpb.MaxPort {
					r.Errorf("port %q: %v", text, port)
				}
			}
		}
		if n, err := parseNetwork(text); err == nil && n.Network == "" {
			r.Errorf("network %q: %v", text, n)
		}
		if name, line, err := parseHost(text); err == nil && !strings.HasSuffix(line, " "+name) {
			r.Errorf("host %q: %q", text, line)
		}
		if m, err := parseMount(text); err == nil && m.Target == "" {
			r.Errorf("mount %q: %v", text, m)
		}
		_, _ = parseScale(text)
		if g, err := parseGeneric(text); err == nil && (g.Kind == "" || g.Count < 1) {
			r.Errorf("generic resource %q: %v", text, g)
		}
		var budget budgetValue
		if err := budget.Set(text); err == nil && text != byDefault && budget.Most == nil {
			r.Errorf("budget %q: %v", text, budget)
		}
		_ = new(cpuValue).Set(text)
		_ = new(bytesValue).Set(text)
		_ = (&format{known: []string{formatTable}}).Set(text)
	})
}

func TestCPUs_AnyAmount_ReadsBackAsItWasWritten(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		nano := rapid.Int64Range(1, 1<<50).Draw(r, "nano")
		var v cpuValue
		if err := v.Set(cpus(nano)); err != nil || int64(v) != nano {
			r.Errorf("%d: %s: %v %v", nano, cpus(nano), v, err)
		}
	})
}

func TestTasks_AnyOrder_SortBySlotNewestFirst(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		var rows []taskRow
		for i := range rapid.IntRange(0, 12).Draw(r, "n") {
			slot := rapid.Uint64Range(1, 11).Draw(r, "slot")
			rows = append(rows, taskRow{ID: string(rune('a' + i)), Service: "web", Name: "web." + string(rune('a'+slot)), Slot: slot, Attempt: rapid.Uint64Range(1, 4).Draw(r, "attempt")})
		}
		sortTasks(rows)
		for i := 1; i < len(rows); i++ {
			x, y := rows[i-1], rows[i]
			if x.Slot > y.Slot || x.Slot == y.Slot && x.Attempt < y.Attempt || y.former != (x.Slot == y.Slot) {
				r.Fatalf("%v", rows)
			}
		}
	})
}

func TestUpdate_GenericResources_ChangeAndGoByKind(t *testing.T) {
	f := start(t, false)
	spec := f.control.services[0].Service.Spec
	spec.Task.Resources.Reservations.Generic = []*swarmpb.GenericResource{{Kind: "gpu", Count: 1}, {Kind: "licence", Count: 3}}
	spec.MaxUnavailable, spec.NoRebalance = &swarmpb.DisruptionBudget{Most: &swarmpb.DisruptionBudget_Count{Count: 2}}, true
	spec.Task.Placement.Strategy = swarmpb.PlacementStrategy_PLACEMENT_STRATEGY_BINPACK
	spec.Task.Placement.Platforms = []*swarmpb.Platform{{Os: "linux", Architecture: "amd64"}, {Os: "linux", Architecture: "arm64"}}
	spec.Task.Placement.Preferences = []*swarmpb.PlacementPreference{{Spread: &swarmpb.SpreadOver{Descriptor_: "node.labels.zone"}}}
	f.control.services[0].Progress.Update.State = swarmpb.UpdateState_UPDATE_STATE_COMPLETED
	golden(t, "placement_update", f.play(
		"service inspect --pretty web",
		"service update -d --generic-resource-add gpu=2 --generic-resource-rm licence web", "service update --generic-resource-rm fpga web",
		"service update --generic-resource-add gpu=1 web", "service update --max-unavailable 2 --no-rebalance web", "service update -d --max-unavailable default --rebalance web",
		"service update --rebalance --no-rebalance web",
	))
	if len(f.control.updated) != 2 {
		t.Fatalf("%d updates", len(f.control.updated))
	}
	if got := specFields(f.control.updated[0].Task.Resources.Reservations); len(got) != 2 || got[1].line() != "generic: gpu=2" {
		t.Errorf("reserved %v", got)
	}
	if last := f.control.updated[1]; last.MaxUnavailable != nil || last.NoRebalance {
		t.Errorf("%v", last)
	}
}

func TestDiff_Placement_ReadsAsAUserWritesIt(t *testing.T) {
	f := start(t, false)
	after := f.control.services[0].Service.Spec
	before := swarmpb.Clone(after)
	before.Task.Placement.Preferences = []*swarmpb.PlacementPreference{{Spread: &swarmpb.SpreadOver{Descriptor_: "node.labels.zone"}}}
	before.MaxUnavailable = &swarmpb.DisruptionBudget{Most: &swarmpb.DisruptionBudget_Count{Count: 1}}
	after.MaxUnavailable = &swarmpb.DisruptionBudget{Most: &swarmpb.DisruptionBudget_Percent{Percent: 25}}
	after.NoRebalance = true
	after.Task.Placement.Platforms = []*swarmpb.Platform{{Os: "linux", Architecture: "arm64"}, {Os: "linux"}}
	after.Task.Placement.Strategy = swarmpb.PlacementStrategy_PLACEMENT_STRATEGY_BINPACK
	after.Task.Placement.Constraints = append(after.Task.Placement.Constraints, "node.labels.zone in (a, b)")
	after.Task.Resources.Reservations.Generic = []*swarmpb.GenericResource{{Kind: "gpu", Count: 2}}
	var got []string
	for _, c := range diffFields(specFields(before), specFields(after)) {
		got = append(got, strings.Join([]string{c.Change, c.Field, c.Before, c.After}, "|"))
	}
	want := []string{
		"added|task.resources.reservations.generic||gpu=2",
		"added|task.placement.constraints||node.labels.zone in (a, b)",
		"removed|task.placement.preferences|spread=node.labels.zone|",
		"added|task.placement.strategy||binpack",
		"added|task.placement.platforms||linux/arm64",
		"added|task.placement.platforms||linux",
		"changed|maxUnavailable|1|25%",
		"added|noRebalance||true",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s", strings.Join(got, "\n"))
	}
}
