package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/types/known/durationpb"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// serviceFlags are the flags that create and update share. For update a list has an -add and an -rm flag.
type serviceFlags struct {
	replicas                            uint64
	lists                               map[string]*listFlag
	envFiles, capAdd, capDrop           []string
	entrypoint, workdir, user, hostname string
	limitCPU, reserveCPU                cpuValue
	limitMemory, reserveMemory          bytesValue
	limitPids                           int64
	restartCondition                    string
	restartDelay, restartWindow         spanValue
	restartMaxAttempts                  uint64
	placement                           placementFlags
	stopAfterDisconnect                 time.Duration
	healthFlags
	job                             jobFlags
	stop                            stopFlags
	stopSignal                      string
	readOnly, init, noNewPrivileges bool
	pull                            string
	withAuth, noResolve             bool
	endpointMode                    string
	networkAliases                  []string
	// networkIDs are the networks that flags of update name, by name.
	networkIDs map[string]string
	// create tells whose flags they are.
	create bool
	// socket is where --host of create puts the socket of swarmd.
	socket           *string
	update, rollback updateFlags
}

// listFlag is a list of a spec that flags add to and remove from.
type listFlag struct {
	add, rm []string
}

func (s *serviceFlags) define(cmd *cobra.Command, create bool) {
	f := cmd.Flags()
	f.Uint64Var(&s.replicas, "replicas", 1, "`number` of replicas")
	s.job.define(cmd, create)
	s.lists, s.create = map[string]*listFlag{}, create
	s.list(f, create, "env", "e", "environment variable `NAME=VALUE`; a NAME alone takes the value that it has here", "environment variable, by `NAME`")
	if create {
		f.StringArrayVar(&s.envFiles, "env-file", nil, "`file` of NAME=VALUE lines")
	}
	s.list(f, create, "label", "l", "label of the service, `NAME=VALUE`", "label of the service, by `NAME`")
	s.list(f, create, "container-label", "", "label of the containers, `NAME=VALUE`", "label of the containers, by `NAME`")
	s.defineNetwork(cmd, create)
	s.list(f, create, "mount", "", "`mount`, type=bind|volume|tmpfs,source=...,target=...[,readonly]", "mount, by its `target`")
	f.StringVar(&s.pull, "pull", "", "when a node asks the registry for the image: always, missing or never (default: missing for an image whose digest is known, else always)")
	f.BoolVar(&s.withAuth, "with-registry-auth", false, "give the cluster your credentials for the image's registry, for the nodes that pull it; the service keeps them")
	f.BoolVar(&s.noResolve, "no-resolve-image", false, "do not ask the registry for the digest of the image's tag: each node goes by the tag")
	completeWords(cmd, "pull", "always", "missing", "never")
	f.StringArrayVar(&s.capAdd, "cap-add", nil, "`capability` to add to the default ones, such as NET_ADMIN; may be repeated")
	f.StringArrayVar(&s.capDrop, "cap-drop", nil, "`capability` to take away, or ALL; may be repeated")
	f.StringVar(&s.entrypoint, "entrypoint", "", "`command` in place of the image's entrypoint, in one word, split as a shell does")
	f.StringVarP(&s.workdir, "workdir", "w", "", "working `directory` in the container")
	f.StringVarP(&s.user, "user", "u", "", "`user[:group]` in the container, names or numbers")
	f.StringVar(&s.hostname, "hostname", "", "host `name` in the container; may hold {{.Task.Slot}} and the like")
	f.Var(&s.limitCPU, "limit-cpu", "`CPUs` that a replica may use at most, such as 0.5")
	f.Var(&s.limitMemory, "limit-memory", "`memory` that a replica may use at most, such as 200m")
	f.Int64Var(&s.limitPids, "limit-pids", 0, "`number` of processes that a replica may have at most; -1 for any (default 4096)")
	f.Var(&s.reserveCPU, "reserve-cpu", "`CPUs` that a node must have free for a replica")
	f.Var(&s.reserveMemory, "reserve-memory", "`memory` that a node must have free for a replica")
	s.definePlacement(cmd, create)
	f.StringVar(&s.restartCondition, "restart-condition", "any", "when an ended replica is replaced: any, on-failure or none")
	valueFlag(f, &s.restartDelay, "restart-delay", "", "pause before a replacement (default: none the first time, then 500ms doubling to 30s)")
	f.Uint64Var(&s.restartMaxAttempts, "restart-max-attempts", 0, "most replacements of a replica (default: any `number`)")
	valueFlag(f, &s.restartWindow, "restart-window", "", "time over which --restart-max-attempts counts (default: for ever)")
	s.healthFlags.define(cmd)
	s.stop.define(f)
	f.DurationVar(&s.stopAfterDisconnect, "stop-after-disconnect", 0, "stop a replica whose node has been cut off from all managers for this `time`, "+
		"and start none in its place before; 10s or more is sensible (default, or 0: it goes on)")
	f.StringVar(&s.stopSignal, "stop-signal", "", "`signal` that asks the container to end (default: the image's, or SIGTERM)")
	f.BoolVar(&s.readOnly, "read-only", false, "mount the container's root filesystem read-only")
	f.BoolVar(&s.init, "init", false, "run a small init as the container's first process")
	f.BoolVar(&s.noNewPrivileges, "no-new-privileges", false, "let no process of the container gain privileges")
	s.update.define(cmd, "update", "pause", "continue", "rollback")
	s.rollback.define(cmd, "rollback", "pause", "continue")
	completeWords(cmd, "restart-condition", "any", "on-failure", "none")
	if !create {
		hideDefaults(f)
	}
}

// hideDefaults is for update, where a flag that is not given changes nothing.
func hideDefaults(f *pflag.FlagSet) {
	f.VisitAll(func(flag *pflag.Flag) {
		switch flag.Value.Type() {
		case "uint32", "uint64", "float64", "duration":
			flag.DefValue = "0"
		case "string":
			flag.DefValue = ""
		}
	})
}

// adds is the name of the flag that adds to a list.
func (s *serviceFlags) adds(list string) string {
	if s.create {
		return list
	}
	return list + "-add"
}

func (s *serviceFlags) list(f *pflag.FlagSet, create bool, name, short, addHelp, rmHelp string) {
	l := &listFlag{}
	s.lists[name] = l
	if create {
		f.StringArrayVarP(&l.add, name, short, nil, addHelp+"; may be repeated")
		return
	}
	f.StringArrayVar(&l.add, name+"-add", nil, "add or change: "+addHelp)
	f.StringArrayVar(&l.rm, name+"-rm", nil, "remove: "+rmHelp)
}

// apply changes the spec by the flags that were given.
func (s *serviceFlags) apply(f *pflag.FlagSet, spec *swarmpb.ServiceSpec) error {
	if spec.Task == nil {
		spec.Task = &swarmpb.TaskSpec{}
	}
	if spec.Task.Container == nil {
		spec.Task.Container = &swarmpb.ContainerSpec{}
	}
	if f.Changed("replicas") {
		if spec.GetMode().GetReplicated() == nil {
			return errors.New("--replicas: only a replicated service has a number of replicas; this one is " + modeWord(spec.GetMode()))
		}
		spec.Mode = replicated(s.replicas)
	}
	if f.Changed("endpoint-mode") {
		mode, err := swarmpb.ParseEndpointMode(s.endpointMode)
		if err != nil {
			return fmt.Errorf("--endpoint-mode: %w", err)
		}
		orNew(&spec.Endpoint).Mode = mode
	}
	return errors.Join(
		s.placement.apply(f, spec), s.job.apply(f, spec), s.applyLists(spec), s.applyContainer(f, spec.Task.Container), s.applyTask(f, spec.Task),
		s.update.apply(f, &spec.Update), s.rollback.apply(f, &spec.Rollback),
	)
}

func (s *serviceFlags) applyContainer(f *pflag.FlagSet, c *swarmpb.ContainerSpec) error {
	var errs []error
	if f.Changed("entrypoint") {
		words, err := splitWords(s.entrypoint)
		if err != nil {
			errs = append(errs, fmt.Errorf("--entrypoint: %w", err))
		}
		c.Command = words
	}
	if f.Changed("pull") {
		policy, err := parsePull(s.pull)
		errs, c.PullPolicy = append(errs, err), policy
	}
	set(f, "workdir", &c.Dir, s.workdir)
	set(f, "user", &c.User, s.user)
	set(f, "hostname", &c.Hostname, s.hostname)
	set(f, "stop-signal", &c.StopSignal, s.stopSignal)
	set(f, "read-only", &c.ReadOnly, s.readOnly)
	set(f, "init", &c.Init, s.init)
	set(f, "no-new-privileges", &c.NoNewPrivileges, s.noNewPrivileges)
	return errors.Join(append(errs, s.healthFlags.apply(f, c), s.stop.apply(f, c))...)
}

func (s *serviceFlags) applyTask(f *pflag.FlagSet, t *swarmpb.TaskSpec) error {
	if changed(f, "limit-cpu", "limit-memory", "limit-pids", "reserve-cpu", "reserve-memory") {
		r := orNew(&t.Resources)
		if changed(f, "limit-cpu", "limit-memory") {
			set(f, "limit-cpu", &orNew(&r.Limits).NanoCpus, int64(s.limitCPU))
			set(f, "limit-memory", &orNew(&r.Limits).MemoryBytes, int64(s.limitMemory))
		}
		if changed(f, "reserve-cpu", "reserve-memory") {
			set(f, "reserve-cpu", &orNew(&r.Reservations).NanoCpus, int64(s.reserveCPU))
			set(f, "reserve-memory", &orNew(&r.Reservations).MemoryBytes, int64(s.reserveMemory))
		}
		set(f, "limit-pids", &r.PidsLimit, s.limitPids)
	}
	if changed(f, "restart-condition", "restart-delay", "restart-window", "restart-max-attempts") {
		r := orNew(&t.Restart)
		if f.Changed("restart-condition") {
			condition, err := swarmpb.ParseRestartCondition(s.restartCondition)
			if err != nil {
				return fmt.Errorf("--restart-condition: %w", err)
			}
			r.Condition = condition
		}
		set(f, "restart-delay", &r.Delay, s.restartDelay.Duration)
		set(f, "restart-window", &r.Window, s.restartWindow.Duration)
		set(f, "restart-max-attempts", &r.MaxAttempts, s.restartMaxAttempts)
	}
	if f.Changed("stop-after-disconnect") {
		t.StopAfterDisconnect = nil
		if s.stopAfterDisconnect != 0 {
			t.StopAfterDisconnect = durationpb.New(s.stopAfterDisconnect)
		}
	}
	return nil
}

func (s *serviceFlags) applyLists(spec *swarmpb.ServiceSpec) error {
	c := spec.Task.Container
	var fromFiles []string
	for _, path := range s.envFiles {
		vars, err := readEnvFile(path)
		if err != nil {
			return err
		}
		fromFiles = append(fromFiles, vars...)
	}
	env := *s.lists["env"]
	env.add = append(fromFiles, env.add...)
	editCapabilities(s.capAdd, &c.CapAdd, &c.CapDrop)
	editCapabilities(s.capDrop, &c.CapDrop, &c.CapAdd)
	errs := []error{
		editPairs("label", *s.lists["label"], &spec.Labels), editPairs("container-label", *s.lists["container-label"], &c.Labels),
		editEnv(env, &c.Env), editPorts(s.adds("publish"), *s.lists["publish"], spec), editMounts(*s.lists["mount"], c),
		editNetworks(s.adds("network"), *s.lists["network"], s.networkAliases, s.networkIDs, spec.Task), s.editResolver(c), editHosts(*s.lists["host"], c),
		s.applyPlacement(spec.Task),
	}
	return errors.Join(errs...)
}

func changed(f *pflag.FlagSet, names ...string) bool { return slices.ContainsFunc(names, f.Changed) }

// set stores the flag's value when it was given.
func set[T any](f *pflag.FlagSet, name string, to *T, value T) {
	if f.Changed(name) {
		*to = value
	}
}

// orNew returns *p, made first when it is nil.
func orNew[T any](p **T) *T {
	if *p == nil {
		*p = new(T)
	}
	return *p
}

// editWords adds and removes plain words.
func editWords(flag string, l listFlag, to *[]string) error {
	for _, rm := range l.rm {
		i := slices.Index(*to, rm)
		if i < 0 {
			return fmt.Errorf("--%s-rm %q: the service has no such one; it has %s", flag, rm, orNone(*to))
		}
		*to = slices.Delete(*to, i, i+1)
	}
	for _, add := range l.add {
		if !slices.Contains(*to, add) {
			*to = append(*to, add)
		}
	}
	return nil
}

func orNone(words []string) string {
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, ", ")
}
