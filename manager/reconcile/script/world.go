// Package script runs reconcilers against a real store in virtual time, one step after the other, so that tests of
// the manager's controllers can be written as plain text: what a user or a node does, and the task table that comes
// of it. It is for tests alone.
//
// A World is the cluster: a store with a proposer of its own, reconcilers, and, when told so, nodes that do what they
// are told at once. Nothing happens at the same time as anything else, so a script always ends the same way. Run
// plays scripts; package tests with other needs drive a World themselves.
package script

import (
	"fmt"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/store"
)

// maxSteps is how many plans the world may take to come to rest.
const maxSteps = 100_000

// World is a cluster in virtual time.
type World struct {
	Store *store.Store
	// Check, when set, is asked after every write; its error is the world's.
	Check func(*store.View) error

	engine *reconcile.Virtual
	start  time.Time
	nodes  nodes
	// versions is how many templates each service has had beyond its first.
	versions map[string]uint64
	// specs are those that each service had when a template of it was made, by the template's version.
	specs map[string]map[uint64]*swarmpb.ServiceSpec
}

// New makes a world with a cluster row and nothing else.
func New(reconcilers ...reconcile.Reconciler) (*World, error) {
	s := store.New()
	w := &World{Store: s, start: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), versions: map[string]uint64{},
		specs: map[string]map[uint64]*swarmpb.ServiceSpec{}}
	w.nodes.images = map[string]behaviour{}
	engine, err := reconcile.NewVirtual(reconcile.VirtualConfig{
		Store: s, Now: w.start, Reconcilers: reconcilers, Written: w.written, Twice: true})
	if err != nil {
		return nil, fmt.Errorf("new world: %w", err)
	}
	w.engine = engine
	return w, w.Write(Put(&swarmpb.Row{Row: &swarmpb.Row_Cluster{Cluster: &swarmpb.Cluster{Id: "cluster", Spec: &swarmpb.ClusterSpec{}}}}))
}

func (w *World) written(view *store.View) error {
	if w.Check == nil {
		return nil
	}
	return w.Check(view)
}

// Put is the write that makes or replaces a row.
func Put(row *swarmpb.Row) *swarmpb.Write { return &swarmpb.Write{Op: &swarmpb.Write_Put{Put: row}} }

// View is the newest state.
func (w *World) View() *store.View { return w.Store.View() }

// Leader writes to the store as reconcilers do: for a test that runs real drivers in the world instead.
func (w *World) Leader() store.Leader { return w.engine.Leader() }

// Now is the virtual time.
func (w *World) Now() time.Time { return w.engine.Now() }

// Write proposes, as anybody but a reconciler would.
func (w *World) Write(writes ...*swarmpb.Write) error {
	_, err := w.engine.Propose(&swarmpb.Proposal{Writes: writes})
	return err
}

// Settle lets reconcilers and nodes act until none has anything left to do at this time.
func (w *World) Settle() error {
	for range maxSteps {
		busy, err := w.engine.Step()
		if err != nil {
			return err
		}
		if !busy {
			if busy, err = w.nodes.act(w); err != nil {
				return err
			}
		}
		if !busy {
			return nil
		}
	}
	return fmt.Errorf("the cluster does not come to rest: %d steps were taken at %s", maxSteps, w.Clock())
}

// Advance moves the time on, stopping wherever somebody has asked to be woken.
func (w *World) Advance(d time.Duration) error {
	end := w.Now().Add(d)
	for {
		if err := w.Settle(); err != nil {
			return err
		}
		next := end
		if at, ok := w.engine.Next(); ok && at.Before(next) {
			next = at
		}
		if at, ok := w.nodes.next(w); ok && at.Before(next) {
			next = at
		}
		if !w.Now().Before(end) {
			return nil
		}
		w.engine.Pass(next)
	}
}

// Clock is the time since the world's beginning.
func (w *World) Clock() time.Duration { return w.Now().Sub(w.start) }

// Relist makes every reconciler look at everything, as a new leader would.
func (w *World) Relist() { w.engine.Relist() }
