package script

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// indent marks a line of output in a script.
const indent = "    "

// Run plays every script of a directory in a world of its own and compares what it prints with what it says; with
// update it rewrites the scripts instead.
//
// A script is a text of commands, one a line; # begins a comment. Indented lines are what the command above prints.
// The commands:
//
//	node NAME ready|down|unknown|disconnected         what is seen of a node; the first makes it a member
//	node NAME active|pause|drain                      what its operator wants of it
//	node NAME label [KEY=VALUE ...]                   all labels that it has from now on
//	node NAME cpus N                                  what it has; a service's cpus=N priority=N (where placement is real)
//	node NAME gone                                    it is removed from the cluster
//	service NAME [KEY=VALUE ...]                      create: replicas image label restart restart-delay restart-window
//	                                                  max-attempts; parallelism delay monitor order failure-action
//	                                                  max-failure-ratio strategy steps=5%:10s,50%:manual grace deadline, each
//	                                                  also with rollback- before it
//	                                                  max-unavailable=N|N% rebalance=no
//	                                                  kind=global|replicated-job|global-job constraint total max-concurrent;
//	                                                  schedule=*/5_*_*_*_* timezone overlap missed keep-runs suspended=yes|no
//	update NAME KEY=VALUE ...;  scale NAME N;  force NAME;  rollback NAME;  remove NAME
//	task NAME.SLOT STATE                              what the worker says of the slot's newest task
//	pause|resume|promote|promote-fully NAME;  abort NAME
//	metric NAME failing|fine                          what the canary's metric is
//	ready|unready NAME.SLOT                           the slot's newest task runs, and the worker says whether it is ready
//	image NAME runs | rejected | complete|failed|unready after DURATION | pulls|starts|stops in DURATION ...
//	                                                  what becomes of its tasks when nodes are on
//	auto on|off                                       nodes take tasks and do what they are told, at once
//	balance on|off|now                                whether tasks are moved for balance; now: once, a user asks for it
//	history N                                         ended tasks kept a slot
//	advance DURATION                                  time passes
//	relist                                            a new leader looks at everything
//	leaderless DURATION                               time passes without any leader; then a new one looks at everything
//	at 2030-03-10T06:55:00Z                           time passes until then
//	job NAME                                          prints its runs
//	tasks [NAME];  status NAME;  outcomes NAME        print
//	network NAME [subnet=CIDR] [ipv6] | removed;  a service's networks=A,B publish=PUBLISHED:TARGET[/PROTOCOL],... mode=vip|dnsrr
//	networks;  endpoint NAME                          print what they, a service and its tasks were given
//	try COMMAND                                       prints why it is refused
//
// After each command everything settles before the next one is read.
func Run(t *testing.T, dir string, update bool, world func() (*World, error)) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.txt"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts in %s (error %v)", dir, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			old, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			w, err := world()
			if err != nil {
				t.Fatal(err)
			}
			played, err := w.Play(string(old))
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			if played == string(old) {
				return
			}
			if update {
				if err := os.WriteFile(file, []byte(played), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			t.Errorf("%s: %s\nrun go test with -update to take over what is printed now", file, firstDifference(string(old), played))
		})
	}
}

// Play runs a script and gives it back with what it prints now.
func (w *World) Play(script string) (string, error) {
	var out strings.Builder
	for i, line := range strings.Split(strings.TrimRight(script, "\n"), "\n") {
		if strings.HasPrefix(line, indent) {
			continue
		}
		out.WriteString(line + "\n")
		command, _, _ := strings.Cut(line, "#")
		words := strings.Fields(command)
		if len(words) == 0 {
			continue
		}
		printed, err := w.Do(words...)
		if err == nil {
			err = w.Settle()
		}
		if err != nil {
			return "", fmt.Errorf("line %d: %s: %w", i+1, line, err)
		}
		for printed := range strings.Lines(printed) {
			out.WriteString(indent + printed)
		}
	}
	return out.String(), nil
}

// Do runs one command, without settling after it.
func (w *World) Do(words ...string) (printed string, err error) {
	name, args := words[0], words[1:]
	c, ok := commands()[name]
	if !ok {
		return "", fmt.Errorf("there is no command %q", name)
	}
	if len(args) < c.args {
		return "", fmt.Errorf("%s takes at least %d words", name, c.args)
	}
	return c.run(w, args)
}

type command struct {
	args int
	run  func(w *World, args []string) (string, error)
}

// silent is a command that prints nothing.
func silent(args int, run func(w *World, args []string) error) command {
	return command{args, func(w *World, args []string) (string, error) { return "", run(w, args) }}
}

func commands() map[string]command {
	return map[string]command{
		"node":    silent(2, (*World).doNode),
		"service": silent(1, (*World).doService),
		"update":  silent(1, (*World).doUpdate),
		"scale":   silent(2, func(w *World, args []string) error { return w.doUpdate([]string{args[0], "replicas=" + args[1]}) }),
		"force": silent(1, func(w *World, args []string) error {
			return w.Update(args[0], func(spec *swarmpb.ServiceSpec) error { spec.Task.ForceUpdate++; return nil })
		}),
		"rollback":      silent(1, func(w *World, args []string) error { return w.Rollback(args[0]) }),
		"abort":         silent(1, func(w *World, args []string) error { return w.Abort(args[0]) }),
		"pause":         told(swarmpb.RolloutAction_ROLLOUT_ACTION_PAUSE),
		"resume":        told(swarmpb.RolloutAction_ROLLOUT_ACTION_RESUME),
		"promote":       told(swarmpb.RolloutAction_ROLLOUT_ACTION_PROMOTE),
		"promote-fully": told(swarmpb.RolloutAction_ROLLOUT_ACTION_PROMOTE_FULLY),
		"metric":        silent(2, func(w *World, args []string) error { return w.Metric(args[0], args[1] == "failing") }),
		"ready":         silent(1, func(w *World, args []string) error { return w.doReady(args[0], true) }),
		"unready":       silent(1, func(w *World, args []string) error { return w.doReady(args[0], false) }),
		"outcomes":      {1, (*World).doOutcomes},
		"remove":        silent(1, func(w *World, args []string) error { return w.Remove(args[0]) }),
		"task":          silent(2, (*World).doTask),
		"image":         silent(2, (*World).doImage),
		"auto":          silent(1, func(w *World, args []string) error { w.nodes.auto = args[0] == "on"; return nil }),
		"history":       silent(1, (*World).doHistory),
		"advance":       silent(1, (*World).doAdvance),
		"balance":       silent(1, (*World).doBalance),
		"relist":        silent(0, func(w *World, _ []string) error { w.Relist(); return nil }),
		"try":           {1, (*World).doTry},
		"tasks":         {0, (*World).doTasks},
		"status":        {1, (*World).doStatus},
		"job":           {1, (*World).doJob},
		"leaderless":    silent(1, (*World).doLeaderless),
		"at":            silent(1, (*World).doAt),
		"network":       silent(1, (*World).doNetwork),
		"networks":      {0, (*World).doNetworks},
		"endpoint":      {1, (*World).doEndpoint},
	}
}

// told is a command to a rollout.
func told(action swarmpb.RolloutAction) command {
	return silent(1, func(w *World, args []string) error { return w.Command(args[0], action) })
}

func (w *World) doReady(slot string, ready bool) error {
	id, err := w.newest(slot)
	if err != nil {
		return err
	}
	return w.Ready(id, ready)
}

func (w *World) doNode(args []string) error {
	if args[1] == "label" {
		return w.changeNode(args[0], func(spec *swarmpb.NodeSpec) { spec.Labels = labelsOf(args[2:]) })
	}
	if args[1] == "cpus" && len(args) == 3 {
		return w.NodeCPUs(args[0], args[2])
	}
	if args[1] == "gone" {
		return w.NodeGone(args[0])
	}
	if availability, err := swarmpb.ParseNodeAvailability(args[1]); err == nil {
		return w.NodeAvailability(args[0], availability)
	}
	state, ok := swarmpb.NodeState_value["NODE_STATE_"+strings.ToUpper(args[1])]
	if !ok {
		return fmt.Errorf("a node cannot be %q", args[1])
	}
	return w.NodeState(args[0], swarmpb.NodeState(state))
}

func (w *World) doService(args []string) error {
	spec := NewSpec(1)
	if err := setAll(spec, args[1:]); err != nil {
		return err
	}
	return w.Create(args[0], spec)
}

func (w *World) doUpdate(args []string) error {
	return w.Update(args[0], func(spec *swarmpb.ServiceSpec) error { return setAll(spec, args[1:]) })
}

func setAll(spec *swarmpb.ServiceSpec, pairs []string) error {
	for _, pair := range pairs {
		key, value, _ := strings.Cut(pair, "=")
		if err := setSpec(spec, key, value); err != nil {
			return fmt.Errorf("%s: %w", pair, err)
		}
	}
	return nil
}

func (w *World) doTask(args []string) error {
	state, ok := swarmpb.TaskState_value["TASK_STATE_"+strings.ToUpper(args[1])]
	if !ok {
		return fmt.Errorf("a task cannot be %q", args[1])
	}
	id, err := w.newest(args[0])
	if err != nil {
		return err
	}
	return w.Report(id, swarmpb.TaskState(state))
}

// newest is the ID of the newest task of NAME.SLOT, of those that have not ended if there are any.
func (w *World) newest(name string) (id string, err error) {
	service, number, _ := strings.Cut(name, ".")
	slot, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		if slot = swarmpb.NodeSlot(number); w.View().Node(number) == nil {
			return "", fmt.Errorf("%q is not SERVICE.SLOT or SERVICE.NODE", name)
		}
	}
	for task := range w.View().TasksIn(service, slot) {
		if id == "" || !w.View().Observed(task.Id).Ended() {
			id = task.Id
		}
	}
	if id == "" {
		return "", fmt.Errorf("there is no task %s", name)
	}
	return id, nil
}

func (w *World) doImage(args []string) error {
	acts := behaviour{}
	wrong := fmt.Errorf("an image runs, is rejected, is complete, failed or unready after a time, or pulls, starts or stops in a time; not %v", args[1:])
	for words := args[1:]; len(words) > 0; {
		if words[0] == "runs" || words[0] == "rejected" {
			if words[0] == "rejected" {
				acts.end = swarmpb.TaskState_TASK_STATE_REJECTED
			}
			words = words[1:]
			continue
		}
		if len(words) < 3 {
			return wrong
		}
		d, err := time.ParseDuration(words[2])
		if err != nil {
			return err
		}
		switch strings.Join(words[:2], " ") {
		case "complete after", "failed after":
			acts.end, acts.after = swarmpb.TaskState(swarmpb.TaskState_value["TASK_STATE_"+strings.ToUpper(words[0])]), d
		case "unready after":
			acts.unready = d
		case "pulls in":
			acts.pull = d
		case "starts in":
			acts.start = d
		case "stops in":
			acts.stop = d
		default:
			return wrong
		}
		words = words[3:]
	}
	w.nodes.images[args[0]] = acts
	return nil
}

func (w *World) doHistory(args []string) error {
	n, err := strconv.ParseUint(args[0], 10, 32)
	if err != nil {
		return err
	}
	cluster := swarmpb.Clone(w.View().Cluster())
	limit := uint32(n)
	cluster.Spec.TaskHistoryLimit = &limit
	return w.Write(Put(&swarmpb.Row{Row: &swarmpb.Row_Cluster{Cluster: cluster}}))
}

func (w *World) doAdvance(args []string) error {
	d, err := time.ParseDuration(args[0])
	if err != nil {
		return err
	}
	return w.Advance(d)
}

func firstDifference(old, new string) string {
	was, is := strings.Split(old, "\n"), strings.Split(new, "\n")
	for i := 0; ; i++ {
		switch {
		case i >= len(was):
			return fmt.Sprintf("line %d: prints more: %q", i+1, is[i])
		case i >= len(is):
			return fmt.Sprintf("line %d: prints no more; the script says %q", i+1, was[i])
		case was[i] != is[i]:
			return fmt.Sprintf("line %d: the script says\n%s\nbut printed is\n%s", i+1, was[i], is[i])
		}
	}
}
