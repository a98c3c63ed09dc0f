package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

const (
	// zoneLabel of a worker is zoneA or zoneB; managers are in neither.
	zoneLabel = "zone"
	zoneA     = "a"
	zoneB     = "b"
	// upkeepCount is what operators do to nodes, in seeds of all modes.
	upkeepCount = 9
	// forGood is when what stays is undone.
	forGood = time.Hour
	// insistence is how often operators try to have something done.
	insistence = 1000
)

// upkeep is what operators do to workers. Those that are emptied for good are few: what is left has room.
func (s *schedule) upkeep(r *rand.Rand) (out []fault) {
	kept := false
	held := r.IntN(4) == 0 // once it is held, it stays so
	for range upkeepCount {
		f := fault{at: between(r, time.Second, storm), machine: fmt.Sprintf("w%d", 1+r.IntN(s.workers))}
		lasts := between(r, 2*time.Second, 20*time.Second)
		switch r.IntN(9) {
		case 0, 1, 2:
			f.kind = relabel
		case 6:
			if f.kind, f.machine = hold, ""; held {
				lasts = forGood
			}
		case 7:
			f.kind, f.machine = even, ""
		case 3:
			f.kind = leave
		case 4:
			f.kind = paused
		case 5:
			f.kind = drained
		default:
			if f.kind = emptied; kept {
				f.kind = drained
			}
			kept = true
		}
		if f.until = min(f.at+lasts, calm); lasts == forGood {
			f.until = forGood
		}
		out = append(out, f)
	}
	return out
}

// operate has an operator do something, through one manager after the other until it is done.
func (w *world) operate(what string, do func(ctx context.Context, api swarmpb.ControlServer) error) {
	err := errDown
	for number := range insistence {
		c := clients{w: w}
		if err = c.one(operation{}, number, do); err == nil {
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
	w.checks.violate("%s: %v", what, err)
}

// available has an operator set a machine's availability; undone, it takes tasks again.
func (w *world) available(m *machine, to swarmpb.NodeAvailability) (undo func()) {
	done := make(chan struct{})
	set := func(to swarmpb.NodeAvailability) {
		w.changeNode(m, "set "+m.name+" to "+to.Name(), func(spec *swarmpb.NodeSpec) { spec.Availability = to })
	}
	w.operators.Go(func() {
		defer close(done)
		set(to)
	})
	return func() {
		w.operators.Go(func() {
			<-done
			set(swarmpb.NodeAvailability_NODE_AVAILABILITY_ACTIVE)
		})
	}
}

// hold has an operator say that nothing moves for balance by itself; undone, it does again.
func (w *world) hold() (undo func()) {
	done := make(chan struct{})
	w.operators.Go(func() {
		defer close(done)
		w.holdBalance(true)
	})
	return func() {
		w.operators.Go(func() {
			<-done
			w.holdBalance(false)
		})
	}
}

// holdBalance changes the cluster's spec, of which nobody changes anything else.
func (w *world) holdBalance(to bool) {
	request := swarmpb.NewID()
	w.operate(fmt.Sprintf("set no rebalance to %t", to), func(ctx context.Context, api swarmpb.ControlServer) error {
		got, err := api.GetCluster(ctx, &swarmpb.GetClusterRequest{})
		if err != nil {
			return err
		}
		spec := swarmpb.Clone(got.GetSpec())
		spec.NoRebalance = to
		_, err = api.UpdateCluster(ctx, &swarmpb.UpdateClusterRequest{Spec: spec, RequestId: request})
		return err
	})
}

// even has a user ask for balance.
func (w *world) even() {
	request := &swarmpb.RebalanceClusterRequest{RequestId: swarmpb.NewID()}
	w.operate("rebalance", func(ctx context.Context, api swarmpb.ControlServer) error {
		_, err := api.RebalanceCluster(ctx, request)
		return err
	})
}

// setZone puts a machine into a zone, or with none into the other one.
func (w *world) setZone(m *machine, zone string) {
	w.changeNode(m, "set the zone of "+m.name, func(spec *swarmpb.NodeSpec) {
		to := zone
		if to == "" {
			if to = zoneA; spec.Labels[zoneLabel] == zoneA {
				to = zoneB
			}
		}
		spec.Labels = map[string]string{zoneLabel: to}
	})
}

// changeNode changes the spec of the node that a machine is now. One that has left meanwhile is not changed.
func (w *world) changeNode(m *machine, what string, change func(*swarmpb.NodeSpec)) {
	node := m.node()
	var version uint64
	var spec *swarmpb.NodeSpec
	w.operate(what, func(ctx context.Context, api swarmpb.ControlServer) error {
		if spec == nil {
			got, err := api.GetNode(ctx, &swarmpb.GetNodeRequest{Node: node})
			if wire.CodeOf(err) == wire.CodeNotFound && m.node() != node {
				return nil
			}
			if err != nil {
				return err
			}
			spec, version = swarmpb.Clone(got.GetNode().GetNode().GetSpec()), got.GetNode().GetNode().GetMeta().GetVersion()
			change(spec)
		}
		_, err := api.UpdateNode(ctx, &swarmpb.UpdateNodeRequest{Node: node, Version: version, Spec: spec})
		if definite(err) {
			spec = nil // somebody else was faster, or an earlier try has done it: it is looked at anew
		}
		return err
	})
}

// zones puts the workers into their zones, and returns when that is done.
func (w *world) zones() {
	for i, m := range w.machines {
		if !m.manager {
			w.setZone(m, []string{zoneA, zoneB}[i%2])
		}
	}
}

// leave has a machine leave for good: its node is removed, its host starts from nothing. Undone, it joins as a new node,
// which starts with comeBack.
func (w *world) leave(m *machine) (undo func()) {
	if m.away {
		return func() {}
	}
	m.away = true
	m.offs++
	node := m.node()
	m.stop()
	m.fake.Reboot()
	m.net.reset()
	removed := make(chan struct{})
	w.operators.Go(func() {
		defer close(removed)
		w.operate("remove "+m.name, func(ctx context.Context, api swarmpb.ControlServer) error {
			_, err := api.RemoveNode(ctx, &swarmpb.RemoveNodeRequest{Node: node, Force: true})
			if wire.CodeOf(err) == wire.CodeNotFound {
				return nil
			}
			return err
		})
	})
	return func() {
		w.operators.Go(func() {
			<-removed
			w.rejoin(m)
		})
	}
}

// rejoin asks one manager after the other for a new identity.
func (w *world) rejoin(m *machine) {
	managers := w.managers()
	err := errors.New("nobody was asked")
	for number := range insistence {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		var identity wire.Identity
		identity, err = m.apply(ctx, managers[number%len(managers)])
		cancel()
		if err == nil {
			m.fresh.Store(&identity)
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
	w.checks.violate("%s joins again: %v", m.name, err)
}

// comeBack starts the machines that have joined again, unless another fault keeps them from that. It is called by the
// bubble's first goroutine.
func (w *world) comeBack() {
	for i, m := range w.machines {
		identity := m.fresh.Swap(nil)
		if identity == nil {
			continue
		}
		m.generation++
		if err := os.MkdirAll(m.dir(), 0o700); err != nil {
			w.checks.violate("make the files of %s: %v", m.name, err)
		}
		m.identity.Store(identity)
		m.away = false
		if m.offs--; m.offs == 0 {
			if err := m.start(nil); err != nil {
				w.checks.violate("start swarmd on %s: %v", m.name, err)
			}
		}
		w.operators.Go(func() { w.setZone(m, []string{zoneA, zoneB}[i%2]) })
	}
}
