package orchestrator_test

import (
	"testing"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/orchestrator"
	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/reconcile/script"
)

// In a cluster whose services are too many for one look each part of them has its turn, and together they see to every service.
func TestBalance_ManyTasks_EveryServiceHasItsTurn(t *testing.T) {
	c := wide(t, benchNodes, 450, 80)
	whole := orchestrator.Moves{}.All(c.store.View())[0]
	c.now = c.now.Add(time.Hour)
	cluster := &swarmpb.Cluster{Id: "c", Spec: &swarmpb.ClusterSpec{NoRebalance: true}, RebalanceAt: c.now.UnixNano()}
	c.write(t, script.Put(&swarmpb.Row{Row: &swarmpb.Row_Cluster{Cluster: cluster}}))

	looks := func(id reconcile.ID, at time.Time) reconcile.Plan {
		plan, err := orchestrator.Moves{}.Reconcile(c.store.View(), id, at)
		if err != nil {
			t.Fatal(err)
		}
		return plan
	}
	ids := looks(whole, c.now).Also
	if len(ids) < 2 {
		t.Fatalf("%d parts", len(ids))
	}
	if plan := looks(reconcile.ID{Object: whole.Object, Slot: 1 << 20}, c.now); len(plan.Writes) > 0 || len(plan.Also) != len(ids) {
		t.Errorf("a part of another division: %d writes, %d others to look at", len(plan.Writes), len(plan.Also))
	}
	turns := map[time.Time]bool{}
	for range 3 {
		for _, look := range ids {
			at := c.now
			if plan := looks(look.ID, at); plan.At.After(at) && len(plan.Writes) == 0 {
				at = plan.At
			}
			turns[at] = true
			if pace := (orchestrator.Moves{}).Pace(c.store.View(), look.ID); pace < time.Second || !looks(look.ID, at.Add(pace)).At.After(at.Add(pace)) {
				t.Fatalf("%s may be looked at again %s after its turn begins", look.ID, pace)
			}
			plan := looks(look.ID, at)
			if len(plan.Writes) > 0 {
				c.apply(t, plan)
			}
		}
		c.now = c.now.Add(time.Minute)
	}
	if len(turns) < 2*len(ids) {
		t.Errorf("%d parts had %d turns", len(ids), len(turns))
	}
	for service := range c.store.View().Services() {
		if got := c.store.View().ServiceProgress(service.Id).GetBalancedAt(); got != cluster.RebalanceAt {
			t.Fatalf("%s was not looked at for the request", service.Id)
		}
	}
}
