package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

func TestCreate_RolloutAndHealthFlags_MakeTheSpec(t *testing.T) {
	f := start(t, false)
	var got strings.Builder
	for _, line := range []string{
		"--health-cmd 'curl -f http://localhost/ || exit 1' --health-interval 5s --health-timeout 1s --health-retries 5 --health-start-period 1m --health-start-interval 500ms nginx",
		`--health-cmd '["/bin/check", "-q"]' --ready-tcp :8080 nginx`,
		"--health-http :8080/healthz?full=1 --ready-http https://www.example.org:8443/ready --ready-retries 1 nginx",
		"--health-grpc grpcs://:9000/shop.Cart --ready-grpc :9001 nginx",
		"--no-healthcheck nginx",
		"--pre-stop '/bin/leave --all \"now then\"' --pre-stop-timeout 5s --drain-timeout 0s --stop-grace-period 1m nginx",
		"--update-strategy blue-green --preview-publish 8081:80 --preview-publish published=8444,target=443 --promote-grace 5m --update-progress-deadline 0 nginx",
		"--update-strategy canary --canary-steps 0.5%:90s,25%:5m,50%:manual,75.25%:1h:manual --canary-metric http://prom:9090/api/v1/query?query=up --canary-metric-min 0.5 --canary-metric-max 1 --canary-metric-interval 15s nginx",
		"--update-strategy in-place --rollback-strategy recreate --rollback-progress-deadline 1m nginx",
		"--update-parallelism default --update-delay default --update-monitor default --update-order default --update-failure-action default --restart-delay default --stop-grace-period default nginx",
	} {
		args, err := splitWords(line)
		if err != nil {
			t.Fatal(err)
		}
		f.control.created = nil
		o := f.run(append([]string{"service", "create", "-d"}, args...)...)
		if f.control.created == nil || o.code != 0 {
			t.Fatalf("%s: %+v", line, o)
		}
		got.WriteString("$ swarmctl service create -d " + line + "\n" + strings.Join(fieldLines(specFields(f.control.created)), "\n") + "\n\n")
	}
	golden(t, "rollout_create_spec", got.String())
	if author := f.control.authors[0]; author != "ann@desk" {
		t.Errorf("author %q", author)
	}
}

// rollingFixture is web with something in every field of a rollout.
func rollingFixture() *swarmpb.ServiceSpec {
	spec := serviceFixtures()[0].Service.Spec
	c := spec.Task.Container
	c.Health = &swarmpb.Probe{Kind: &swarmpb.Probe_Tcp{Tcp: &swarmpb.TCPProbe{Port: 80}}, Interval: durationpb.New(time.Second), Retries: 2}
	c.Ready = &swarmpb.Probe{Kind: &swarmpb.Probe_Http{Http: &swarmpb.HTTPProbe{Port: 80, Path: "/ready"}}}
	c.PreStop, c.PreStopTimeout = []string{"/bin/leave"}, durationpb.New(time.Second)
	most := 0.5
	spec.Update = &swarmpb.UpdateConfig{
		Strategy: swarmpb.UpdateStrategy_UPDATE_STRATEGY_CANARY, PromoteGrace: durationpb.New(time.Hour), Monitor: durationpb.New(time.Minute), ProgressDeadline: durationpb.New(time.Hour),
		CanarySteps:  []*swarmpb.CanaryStep{{Share: 500, Watch: durationpb.New(time.Minute)}},
		CanaryMetric: &swarmpb.CanaryMetric{Url: "http://prom:9090/api/v1/query?query=errors", Max: &most},
	}
	return spec
}

func TestUpdate_RolloutFlags_ChangeOnlyWhatTheySay(t *testing.T) {
	f := start(t, false)
	f.control.services[0].Service.Spec = rollingFixture()
	before := specFields(f.control.services[0].Service.Spec)
	var got strings.Builder
	for _, line := range []string{
		"--health-interval 5s", "--health-interval default --health-retries 0", "--health-cmd 'true'", "--health-cmd ''", "--ready-http :81/", "--ready-tcp ''", "--no-healthcheck", "--health-http https://:443/x --ready-timeout 3s",
		"--pre-stop ''", "--pre-stop-timeout default", "--drain-timeout 1m", "--stop-grace-period default",
		"--update-strategy rolling", "--update-strategy default --update-order start-first", "--update-strategy blue-green --preview-publish 8081:80", "--update-monitor default", "--update-progress-deadline default",
		"--promote-grace default", "--canary-steps 10%:manual,20%:1m", "--canary-steps default", "--canary-steps ''", "--canary-metric ''", "--canary-metric-max 1", "--canary-metric-max default --canary-metric-min -3.5", "--canary-metric-interval 1m", "--canary-metric https://other/api/v1/query?query=x",
		"--rollback-strategy in-place", "--rollback-parallelism 0",
	} {
		args, err := splitWords(line)
		if err != nil {
			t.Fatal(err)
		}
		f.control.updated = nil
		if o := f.run(append(append([]string{"service", "update", "-d"}, args...), "web")...); o.code != 0 || len(f.control.updated) != 1 {
			t.Fatalf("%s: %+v", line, o)
		}
		got.WriteString("$ swarmctl service update -d " + line + " web\n")
		(&app{}).printChanges(&got, diffFields(before, specFields(f.control.updated[0])))
		got.WriteByte('\n')
	}
	golden(t, "rollout_update_spec", got.String())
}

// Every setting of an update or a probe goes back to its default by that word, whatever its type.
func TestUpdate_DefaultAsAValue_OfNumbersToo(t *testing.T) {
	f := start(t, false)
	spec := rollingFixture()
	spec.Update.MaxFailureRatio = 0.5
	f.control.services[0].Service.Spec = spec
	o := f.run("service", "update", "-d", "--update-max-failure-ratio", "default", "--health-retries", "default", "web")
	if o.code != 0 || len(f.control.updated) != 1 {
		t.Fatalf("%+v", o)
	}
	got := f.control.updated[0]
	if got.GetUpdate().GetMaxFailureRatio() != 0 || got.GetTask().GetContainer().GetHealth().GetRetries() != 0 {
		t.Errorf("ratio %v, retries %d", got.GetUpdate().GetMaxFailureRatio(), got.GetTask().GetContainer().GetHealth().GetRetries())
	}
}

func TestRolloutFlags_Wrong_OneLineThatSaysWhatToDo(t *testing.T) {
	f := start(t, false)
	f.control.services[1].Service.Spec = serviceFixtures()[1].Service.Spec
	var got strings.Builder
	for _, line := range []string{
		"create --health-cmd true --health-tcp :80 nginx", "create --health-interval 5s nginx", "create --ready-retries 2 --health-tcp :80 nginx", "create --no-healthcheck --ready-tcp :80 nginx",
		"create --health-cmd '' --health-interval 5s nginx", `create --health-cmd '["a"' nginx`, `create --health-cmd '[""]' nginx`,
		"create --health-http :8080#x nginx", "create --health-http healthz nginx", "create --health-http example.org/x nginx", "create --health-http ftp://example.org:21/x nginx", "create --health-http :0/ nginx", "create --health-http u:p@h:80/ nginx", "create --health-http http:///x nginx",
		"create --health-tcp localhost:80 nginx", "create --health-tcp 99999 nginx", "create --health-grpc :9000/ nginx", "create --health-grpc shop nginx",
		"create --health-interval 5 --health-tcp :80 nginx", "create --health-retries few --health-tcp :80 nginx", "create --health-timeout -1s --health-tcp :80 nginx",
		"create --pre-stop \"'\" nginx", "create --pre-stop-timeout 5s nginx",
		"create --update-strategy purple nginx", "create --rollback-strategy canary nginx", "create --update-strategy in-place --update-order start-first nginx", "create --update-strategy canary --update-order stop-first nginx",
		"create --canary-steps 5%:2m nginx", "create --promote-grace 5m nginx", "create --preview-publish 8081:80 nginx", "create --update-strategy canary --preview-publish 8081:80 nginx", "create --canary-metric http://p/ --canary-metric-max 1 nginx",
		"create --update-strategy canary --canary-steps 5:2m nginx", "create --update-strategy canary --canary-steps 5% nginx", "create --update-strategy canary --canary-steps 5%:soon nginx", "create --update-strategy canary --canary-steps 100%:1m nginx",
		"create --update-strategy canary --canary-steps 0.001%:1m nginx", "create --update-strategy canary --canary-steps 50%:1m,25%:1m nginx", "create --update-strategy canary --canary-steps 5%:0s nginx", "create --update-strategy canary --canary-steps 5%:1m:2m nginx", "create --update-strategy canary --canary-steps 1e1%:1m nginx",
		"create --update-strategy canary --canary-metric http://p/ nginx", "create --update-strategy canary --canary-metric-min 1 nginx", "create --update-strategy canary --canary-metric '' --canary-metric-min 1 nginx", "create --update-strategy canary --canary-metric http://p/ --canary-metric-min 2 --canary-metric-max 1 nginx", "create --canary-metric-min low nginx",
		"create --update-parallelism some nginx", "create --update-monitor 5 nginx", "create --update-strategy blue-green --preview-publish x nginx",
		"create --format json nginx", "update --format json web", "plan", "plan nope", "plan --image x --env-rm NOPE nope", "plan --dry-run web",
		"pause", "pause nope", "promote web api", "rollback --to x web", "rollback --to 0 web", "diff", "diff web x", "diff web 0", "diff web 1 2 3", "diff web 77", "diff nope", "history", "history nope", "ps --health -q web",
	} {
		f.control.revisions = revisionFixtures()
		args, err := splitWords(line)
		if err != nil {
			t.Fatal(err)
		}
		o := f.run(append([]string{"service"}, args...)...)
		got.WriteString("$ swarmctl service " + line + "\n" + o.stderr + "\n")
		if o.code != exitFailed || o.stdout != "" || strings.Count(o.stderr, "\n") != 1 {
			t.Errorf("%s: %+v", line, o)
		}
	}
	golden(t, "rollout_wrong", got.String())
}

func TestProbeTargets_AnyThatAreRead_ReadBackAsTheyAreShown(t *testing.T) {
	read := map[string]func(string) (*swarmpb.Probe, error){}
	for _, kind := range []string{"cmd", "http", "tcp", "grpc"} {
		read[kind] = func(s string) (*swarmpb.Probe, error) {
			p := &probeFlags{prefix: "health", cmd: s, http: s, tcp: s, grpc: s}
			probe := &swarmpb.Probe{}
			return probe, p.setKind("health-"+kind, probe)
		}
	}
	rapid.Check(t, func(r *rapid.T) {
		kind := rapid.SampledFrom([]string{"cmd", "http", "tcp", "grpc"}).Draw(r, "kind")
		text := rapid.StringMatching(`(https?://|grpcs?://|tcp://)?([a-z]{0,3}|\[::1\])(:[0-9]{1,5})?([/?][a-zA-Z0-9./?=%-]{0,8})?|\["[a-z" ,]{0,10}\]|[a-z0-9:@#/ |&]{1,20}`).Draw(r, "text")
		probe, err := read[kind](text)
		if err != nil {
			return
		}
		shownKind, shown := probeTarget(probe)
		again, err := read[shownKind](shown)
		if err != nil || shownKind != kind || !proto.Equal(probe, again) {
			r.Fatalf("%s %q is shown as %q, which reads as %v (%v), not %v", kind, text, shown, again, err, probe)
		}
	})
}

func TestCanarySteps_Any_ReadBackAsTheyAreShown(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		var steps []*swarmpb.CanaryStep
		for share := uint32(0); ; {
			share += rapid.Uint32Range(1, 3000).Draw(r, "more")
			if share >= swarmpb.WholeShare || len(steps) == 20 {
				break
			}
			step := &swarmpb.CanaryStep{Share: share, Manual: rapid.Bool().Draw(r, "manual")}
			if !step.Manual || rapid.Bool().Draw(r, "watched") {
				step.Watch = durationpb.New(time.Duration(rapid.Int64Range(1, int64(100*time.Hour)).Draw(r, "watch")))
			}
			steps = append(steps, step)
		}
		text := canaryStepsText(steps)
		again, err := parseCanarySteps(text)
		if err != nil || len(again) != len(steps) {
			r.Fatalf("%q: %v, %v", text, again, err)
		}
		for i := range steps {
			if !proto.Equal(steps[i], again[i]) {
				r.Fatalf("%q: step %d is %v, want %v", text, i, again[i], steps[i])
			}
		}
	})
}

func TestRolloutValues_AnyText_NeverPanics(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		text := rapid.StringMatching(`[a-z0-9=:,/.%\-" \[\]#@?]{0,30}|[0-9.]{1,6}%(:[0-9a-z]{0,4}){0,3}`).Draw(r, "text")
		if steps, err := parseCanarySteps(text); err == nil {
			for _, s := range steps {
				if s.Share < 1 || s.Share >= swarmpb.WholeShare || s.Watch == nil && !s.Manual {
					r.Errorf("%q: %v", text, s)
				}
			}
		}
		if p, err := parseHTTPProbe(text); err == nil && (p.Port == 0 || p.Path != "" && p.Path[0] != '/') {
			r.Errorf("%q: %v", text, p)
		}
		if p, err := parseGRPCProbe(text); err == nil && p.Port == 0 {
			r.Errorf("%q: %v", text, p)
		}
		_, _ = parseProbeCommand(text)
		_, _ = parsePreview([]string{text})
		_, _ = parseVersion(text)
		_ = new(spanValue).Set(text)
		_ = new(numberValue).Set(text)
		_ = new(boundValue).Set(text)
	})
}

func TestDiff_AnyTwoTexts_LeadsFromOneToTheOther(t *testing.T) {
	lines := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c", "d"}), 0, 20)
	rapid.Check(t, func(r *rapid.T) {
		before, after := lines.Draw(r, "before"), lines.Draw(r, "after")
		var from, to []string
		for _, e := range compareLines(before, after) {
			if e.sign != '+' {
				from = append(from, e.text)
			}
			if e.sign != '-' {
				to = append(to, e.text)
			}
		}
		if fmt.Sprint(from) != fmt.Sprint(before) || fmt.Sprint(to) != fmt.Sprint(after) {
			r.Fatalf("%v -> %v", from, to)
		}
	})
}

func TestUnified_ManyLines_HunksAreNumberedAsPatchExpects(t *testing.T) {
	var before, after []string
	for i := range 40 {
		before = append(before, fmt.Sprint("line ", i+1))
		switch i {
		case 4:
			after = append(after, "line 5, changed")
		case 20, 21:
		default:
			after = append(after, before[i])
		}
		if i == 30 {
			after = append(after, "one more")
		}
	}
	var out strings.Builder
	a := &app{colours: true}
	a.printUnified(&out, "a", "b", before, after)
	a.colours = false
	a.printUnified(&out, "a", "b", nil, []string{"x"})
	a.printUnified(&out, "a", "b", before, before)
	golden(t, "unified", strings.ReplaceAll(out.String(), "\x1b", "<ESC>"))
}

func TestPlan_EveryForm_ReadsAsBefore(t *testing.T) {
	f := start(t, false)
	var got strings.Builder
	scene := func(title string, prepare func(*swarmpb.PlanServiceResponse), lines ...string) {
		f.control.plan = planFixture()
		if prepare != nil {
			prepare(f.control.plan)
		}
		got.WriteString("== " + title + " ==\n" + f.play(lines...))
	}
	scene("fits", nil, "service update --dry-run --image whoami:v2 --env-add NEW=1 --env-rm LEVEL web", "service plan --image whoami:v2 --format json web", "service plan --format '{{.Fits}} {{.AtLeast}}' --force web")
	f.terminal, f.colours, f.width = true, true, 70
	scene("on a terminal", nil, "service plan --image whoami:v2 web")
	f.terminal, f.colours, f.width = false, false, 0
	scene("created", func(p *swarmpb.PlanServiceResponse) {
		p.Stops, p.Warnings = 0, []string{"image \"nginx\": it has no tag"}
	}, "service create --dry-run --name shop --replicas 2 nginx", "service plan --image nginx --replicas 2 --publish-add 80:80 shop")
	scene("does not fit", func(p *swarmpb.PlanServiceResponse) {
		p.Problems = []string{"task web.2: no suitable node (insufficient memory on 2 nodes)", "task web.3: no suitable node (insufficient memory on 2 nodes)"}
		p.Truncated = true
	}, "service update --dry-run --reserve-memory 1t web", "service plan --reserve-memory 1t --format json web", "service rollback --to 3 --dry-run web")
	scene("no change", func(p *swarmpb.PlanServiceResponse) { *p = swarmpb.PlanServiceResponse{NoChange: true} }, "service plan web", "service plan --update-delay 1m web")
	golden(t, "plan", got.String())
	if len(f.control.updated)+len(f.control.rollbacks) != 0 || f.control.created != nil {
		t.Error("something was written")
	}
	create := f.control.plans[4].GetCreate()
	if create.GetSpec().GetName() != "shop" && f.control.plans[5].GetCreate() == nil {
		t.Errorf("%v", f.control.plans)
	}
	for _, p := range f.control.plans {
		if u := p.GetUpdate(); u != nil && (u.Author != "ann@desk" || u.Version != 42 || u.Service != webID) {
			t.Errorf("%v", u)
		}
	}
}

func TestHistoryAndDiff_EveryForm_ReadAsBefore(t *testing.T) {
	f := start(t, false)
	f.control.revisions = revisionFixtures()
	got := f.play("service history web", "service history -q web", "service history --format json web", "service history --format '{{.Version}} {{.State}}' web",
		"service diff web", "service diff web 3", "service diff web 3 4", "service diff web 4 3", "service diff web 4 5", "service diff web 5 6", "service diff web 4 4", "service diff --format json web 3 4", "service diff --format '{{.From}} {{len .Changes}}' web")
	f.terminal, f.colours, f.width = true, true, 80
	got += f.play("service diff web 3 4", "service history web")
	f.control.revisions = f.control.revisions[3:]
	got += f.play("service diff web", "service diff web 6 7")
	golden(t, "history", got)
}

func TestPs_LastUpdateWentBack_SaysWhyBelowTheTasks(t *testing.T) {
	f := start(t, false)
	f.control.services = f.control.services[:1]
	why := "task web.6 failed: exit code 1"
	for _, test := range []struct {
		state           swarmpb.UpdateState
		message, before string
		tells           bool
	}{
		{swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_COMPLETED, "rollback completed", why, true},
		{swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_COMPLETED, "rollback completed", "rollback completed", false}, // as a user asked
		{swarmpb.UpdateState_UPDATE_STATE_COMPLETED, "update completed", why, false},                             // somebody else's outcome
	} {
		f.control.services[0].Progress = &swarmpb.ServiceProgress{
			Update: &swarmpb.UpdateStatus{State: test.state, Revision: 6, Message: test.message},
			Outcomes: []*swarmpb.RevisionOutcome{
				{Revision: 5, State: swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_COMPLETED, Message: "of an earlier one"}, {Revision: 6, State: test.state, Message: test.before},
			},
		}
		got := f.play("service ps web")
		if note := "\n\nversion 6 was rolled back: " + why + "; `swarmctl service history web` lists all versions\n"; strings.Contains(got, note) != test.tells || strings.Contains(got, "rolled back") != test.tells {
			t.Errorf("%s, before %q: want the reason: %t, got\n%s", test.message, test.before, test.tells, got)
		}
	}
}

func TestPsHealth_EveryState_ReadsAsBefore(t *testing.T) {
	f := start(t, false)
	health := func(state swarmpb.HealthState, notReady bool, failing, notReadyFailing uint32, output string) *swarmpb.HealthStatus {
		return &swarmpb.HealthStatus{State: state, NotReady: notReady, Failing: failing, NotReadyFailing: notReadyFailing, Output: output, At: before(time.Minute)}
	}
	states := []*swarmpb.HealthStatus{
		nil,
		health(swarmpb.HealthState_HEALTH_STATE_STARTING, true, 2, 0, "connect: connection refused"),
		health(swarmpb.HealthState_HEALTH_STATE_HEALTHY, false, 0, 0, "200 OK"),
		health(swarmpb.HealthState_HEALTH_STATE_HEALTHY, true, 0, 1, "503 Service Unavailable\nwarming up\x1b[31m"),
		health(swarmpb.HealthState_HEALTH_STATE_UNHEALTHY, true, 3, 3, "exit code 1: database is gone"),
		health(swarmpb.HealthState_HEALTH_STATE_UNSPECIFIED, false, 0, 0, ""),
	}
	f.control.tasks = nil
	for i, h := range states {
		t := taskFixtures()[0]
		t.Task.Id, t.Task.Slot, t.Name = fmt.Sprintf("web%d10000000000000000task", i+1), uint64(i+1), fmt.Sprintf("web.%d", i+1)
		t.Status.Health = h
		f.control.tasks = append(f.control.tasks, t)
	}
	got := f.play("service ps --health web", "service ps --health --no-trunc web", "service ps --format '{{.Name}} {{.Health}} {{.Ready}} {{.Failing}}' web", "task inspect --pretty web.4")
	f.terminal, f.width = true, 80
	golden(t, "ps_health", got+f.play("service ps --health web"))
}

func TestAuthor_WhoeverAsks_IsNamedWithTheHost(t *testing.T) {
	host := func() (string, error) { return "desk", nil }
	for want, env := range map[string]map[string]string{
		"ann@desk":                       {"USER": "root", "SUDO_USER": "ann"},
		"bob@desk":                       {"USER": "bob"},
		strings.Repeat("x", authorLimit): {"USER": strings.Repeat("x", 200)},
		"bad name@desk":                  {"USER": "bad\nname"},
	} {
		if got := whoami(func(k string) string { return env[k] }, host); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got := whoami(func(string) string { return "" }, func() (string, error) { return "", os.ErrNotExist }); got == "" {
		t.Error("nobody asks")
	}
}

func TestCommands_AreSentWithAuthorAndRequestID(t *testing.T) {
	f := start(t, false)
	f.control.message, f.control.revision, f.control.conflicts = "it is done", 7, 1
	got := f.play("service pause -d web", "service resume -d web", "service promote -d web", "service promote -d --full web", "service abort -d web", "service rollback -d web", "service rollback -d --to 3 web")
	f.control.refusal = wire.Errorf(wire.CodeFailedPrecondition, "service web: no update is under way; `swarmctl service history web` shows what became of the last one")
	golden(t, "rollout_commands", got+f.play("service pause web", "service rollback web"))
	var sent []string
	for _, c := range f.control.commands {
		if c.RequestId == "" || c.Author != "ann@desk" || c.Service != "web" {
			t.Errorf("%v", c)
		}
		sent = append(sent, fmt.Sprint(c.Action.Name(), " ", c.Abort))
	}
	if want := "[pause false resume false promote false promote-fully false unspecified true]"; fmt.Sprint(sent) != want {
		t.Errorf("%v, want %s", sent, want)
	}
	if len(f.control.rollbacks) != 2 || f.control.rollbacks[0].Revision != 0 || f.control.rollbacks[1].Revision != 3 || f.control.rollbacks[1].Version != 42 || f.control.rollbacks[1].Author != "ann@desk" {
		t.Errorf("%v", f.control.rollbacks)
	}
}

func TestPlan_JSON_ListsAreThereThoughEmpty(t *testing.T) {
	f := start(t, false)
	f.control.plan = &swarmpb.PlanServiceResponse{NoChange: true}
	o := f.run("service", "plan", "--format", "json", "web")
	var plan map[string]any
	if err := json.Unmarshal([]byte(o.stdout), &plan); err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{"problems", "warnings", "diff", "steps"} {
		if list, ok := plan[field].([]any); !ok || len(list) != 0 {
			t.Errorf("%s: %v", field, plan[field])
		}
	}
}

func TestTrouble_MovedAndKilled_SaysBoth(t *testing.T) {
	for want, r := range map[string]taskRow{
		"moved to n1: the node is drained; killed: late": {State: "shutdown", Message: "moved to n1: the node is drained; stopped", Error: "killed: late"},
		"moved to n1: the node is drained":               {State: "shutdown", Message: "moved to n1: the node is drained; stopped"},
		"exit code 1":                                    {State: "failed", Message: "started", Error: "exit code 1"},
		"pulling":                                        {State: "preparing", Message: "pulling"},
		"":                                               {State: "running", Message: "started"},
	} {
		if got := r.trouble(); got != want {
			t.Errorf("%+v: %q, want %q", r, got, want)
		}
	}
}
