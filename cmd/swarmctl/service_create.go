package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// What the help of `service create` says.
const (
	createLong = `Create a service: a number of replicas of one container, kept running somewhere on the cluster.
COMMAND and ARGs replace the image's arguments (its CMD); --entrypoint replaces its entrypoint.

A port of --publish answers on every node, whether a replica runs there or not, and the replica sees the client's own
address; source=nat shows it the node's instead, affinity=client-ip leads a client to the same replica each time, and
mode=host publishes on the nodes that run a replica alone. Without a published port one of 30000 to 32767 is chosen, which
"service ls" shows. In the networks of --network services find one another by name: web is the service (--endpoint-mode
says how), tasks.web its replicas, web.1 one of them.

--mode global keeps one task on each node that suits; replicated-job and global-job run tasks until they have completed, once,
or at the times of --schedule. The command returns when a job's run has ended, with an error if it failed.

Replicas go to nodes that have what they reserve (--reserve-cpu, --reserve-memory, --generic-resource), meet every --constraint and
suit the image, the least loaded first, or with --placement-strategy binpack the most loaded; --placement-pref spreads
them over zones and the like first. A constraint compares node.id, node.hostname, node.ip, node.role, node.platform.os,
node.platform.arch, node.labels.NAME or engine.labels.NAME by ==, !=, "in (a, b)", "not in (a, b)", <, <=, >, >= (numbers),
=~ and !~ (regular expressions). "service explain" shows what each node says to that. Where nothing else fits, replicas of
services with a lower --priority give way. --max-unavailable is how many replicas a drain may take at a time.

The command prints the service's ID. Without --detach it then shows each replica's progress and returns when all
run, are ready, and have stayed up for the time of --update-monitor (5 s). It exits with an error, saying why, when they
cannot; the service stays. --dry-run shows where the replicas would run, and whether they fit, and creates nothing.

A probe tells how a replica is: --health-cmd asks in the container, --health-http, --health-tcp and --health-grpc from inside
its network. One that is not healthy is replaced. --ready-... asks something else whether it is to get connections; by
default a replica that is not healthy yet, or any more, gets none and does not count as up. Without a probe the image's own
HEALTHCHECK counts, unless --no-healthcheck says no.

A replica that is to stop gets no new connections first; then --pre-stop runs, established connections have the
--drain-timeout to end, the stop signal is sent, and after the --stop-grace-period SIGKILL.

A replica on a node that is cut off goes on there, and another is started elsewhere: until the node is back, it runs
twice. --stop-after-disconnect is for what must not. A node that has had no contact with any manager for that time stops
the replica by itself, and the cluster starts no other before that, the stop grace period and a margin are over. A
cluster without a leader counts as no contact too, which is why less than 10s is rarely wise. What it cannot promise:
where swarmd on the node is dead or frozen while the container lives, nobody stops it there.`

	createExamples = `  swarmctl service create --name web --replicas 3 nginx:alpine
  swarmctl service create --name web -p 8080:80 --network back -e MODE=prod whoami:v1
  swarmctl service create --name shop -p 80:8080 --health-http :8080/healthz --health-start-period 30s --pre-stop /bin/leave shop:3
  swarmctl service create --name web --replicas 40 --reserve-memory 1g --dry-run nginx:alpine
  swarmctl service create --name dns --network name=back,alias=ns -p published=53,target=53,protocol=udp dnsmasq:2
  swarmctl service create --name shop -p published=80,target=8080,affinity=client-ip --host db:192.168.1.5 shop:3
  swarmctl service create --name db --mount type=volume,source=data,target=/data --limit-memory 1g postgres:17
  swarmctl login registry.local:5000 && swarmctl service create --with-registry-auth registry.local:5000/team/app:1.4
  swarmctl service create --name db --replicas 3 --constraint 'node.labels.zone in (a, b)' --placement-pref spread=node.labels.rack postgres:17
  swarmctl service create --name train --generic-resource nvidia.com/gpu=2 --reserve-memory 32g --priority 100 train:1
  swarmctl service create --name web --replicas 6 --max-unavailable 1 --placement-strategy binpack nginx:alpine
  swarmctl service create --name agent --mode global --constraint node.labels.disk==ssd agent:2
  swarmctl service create --name import --mode replicated-job --total 20 --max-concurrent 4 import:1
  swarmctl service create --name report --mode replicated-job --schedule "0 7 * * mon-fri" --timezone Asia/Seoul report:1`
)

func (a *app) serviceCreateCommand() *cobra.Command {
	var (
		w          waiting
		flags      serviceFlags
		name, mode string
		dry        planFlags
	)
	cmd := &cobra.Command{
		Use:                   "create [flags] IMAGE [COMMAND ARG...]",
		Short:                 "Create a service and wait until its replicas run",
		Long:                  createLong,
		Example:               createExamples,
		DisableFlagsInUseLine: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 || args[0] == "" {
				return errors.New("service create: no image is named; use `swarmctl service create [flags] IMAGE [COMMAND ARG...]`")
			}
			return nil
		},
		ValidArgsFunction: first(a.complete(imageNames)),
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.SetInterspersed(false) // what follows the image belongs to the container
	f.StringVar(&name, "name", "", "`name` of the service (default: a made-up one)")
	f.StringVar(&mode, "mode", "replicated", "replicated, global (one task a node), replicated-job or global-job (tasks that come to an end)")
	completeWords(cmd, "mode", "replicated", "global", "replicated-job", "global-job")
	flags.socket = &a.host
	flags.define(cmd, true)
	_ = cmd.RegisterFlagCompletionFunc("network", a.complete(networkNames))
	flags.completePlacement(a, cmd, true)
	dry.define(cmd)
	w.define(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		spec := &swarmpb.ServiceSpec{Name: name}
		var err error
		if spec.Mode, err = swarmpb.ParseServiceMode(mode); err != nil {
			return fmt.Errorf("service create: --%w", err)
		}
		if err := flags.apply(f, spec); err != nil {
			return fmt.Errorf("service create: %w", err)
		}
		spec.Task.Container.Image, spec.Task.Container.Args = args[0], args[1:]
		request := &swarmpb.CreateServiceRequest{Spec: spec, RequestId: swarmpb.NewID(), NoResolveImage: flags.noResolve, Author: a.author}
		if flags.withAuth {
			var err error
			if request.RegistryAuth, err = requiredAuth(args[0]); err != nil {
				return fmt.Errorf("service create: %w", err)
			}
		}
		return a.call(func(ctx context.Context, c *client, _ []string) error {
			if dry.wanted {
				return a.plan(ctx, c, dry, name, &swarmpb.PlanServiceRequest{Change: &swarmpb.PlanServiceRequest_Create{Create: request}})
			}
			r, err := c.CreateService(ctx, request)
			if err != nil {
				return wrongIn("service create", err)
			}
			a.warn(r.Warnings)
			if _, err := fmt.Fprintln(a.out, r.Id); err != nil {
				return err
			}
			return a.await(ctx, c, w, goal{service: r.Id, name: name})
		})(cmd, args)
	}
	return cmd
}

func replicated(n uint64) *swarmpb.ServiceMode {
	return &swarmpb.ServiceMode{Mode: &swarmpb.ServiceMode_Replicated{Replicated: &swarmpb.ReplicatedMode{Replicas: n}}}
}
