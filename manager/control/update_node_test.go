package control

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// desireRole is what another manager's UpdateNode writes.
func (w *world) desireRole(id string, role swarmpb.NodeRole) {
	w.t.Helper()
	node := swarmpb.Clone(w.view().Node(id))
	node.Spec = &swarmpb.NodeSpec{DesiredRole: role}
	w.put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: node}})
}

func (w *world) setRole(ref string, role swarmpb.NodeRole) error {
	_, err := w.server.UpdateNode(ctx, &swarmpb.UpdateNodeRequest{Node: ref, Spec: &swarmpb.NodeSpec{DesiredRole: role}})
	return err
}

func TestUpdateNode_Spec_IsReplacedAndMadeWhole(t *testing.T) {
	w := newWorld(t)
	w.node(nodeA, "a", roleWorker, stateReady)
	r, err := w.server.UpdateNode(ctx, &swarmpb.UpdateNodeRequest{Node: "a", Spec: &swarmpb.NodeSpec{Labels: map[string]string{"disk": "ssd"}}, RequestId: "r"})
	want := &swarmpb.NodeSpec{DesiredRole: roleWorker, Availability: swarmpb.NodeAvailability_NODE_AVAILABILITY_ACTIVE, Labels: map[string]string{"disk": "ssd"}}
	if err != nil || !proto.Equal(r.GetNode().GetNode().GetSpec(), want) || !proto.Equal(w.view().Node(nodeA).GetSpec(), want) {
		t.Fatalf("%v %v", r, err)
	}
	// The same again, as a retry sends it, changes nothing and is no conflict.
	version := w.view().Node(nodeA).GetMeta().GetVersion()
	r, err = w.server.UpdateNode(ctx, &swarmpb.UpdateNodeRequest{Node: "a", Version: version - 1, Spec: want, RequestId: "r"})
	if err != nil || r.GetNode().GetNode().GetMeta().GetVersion() != version || w.proposes != 1 {
		t.Errorf("repeated: %v %v, %d proposals", r, err, w.proposes)
	}
	want.Availability = swarmpb.NodeAvailability_NODE_AVAILABILITY_DRAIN
	if _, err = w.server.UpdateNode(ctx, &swarmpb.UpdateNodeRequest{Node: nodeA, Version: version, Spec: want}); err != nil {
		t.Fatal(err)
	}
	_, err = w.server.UpdateNode(ctx, &swarmpb.UpdateNodeRequest{Node: nodeA, Version: version, Spec: &swarmpb.NodeSpec{}})
	expectError(t, err, wire.CodeConflict, "node a", "somebody else", "repeat")
}

func TestUpdateNode_ChangedMeanwhile_DecidedAnewWithoutVersion(t *testing.T) {
	w := newWorld(t)
	w.node(nodeA, "a", roleWorker, stateReady)
	w.before = func() { // The CA renews the certificate in that moment.
		node := swarmpb.Clone(w.view().Node(nodeA))
		node.CertificateExpiresAt = 99
		w.put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: node}})
	}
	if err := w.setRole("a", roleManager); err != nil {
		t.Fatal(err)
	}
	if node := w.view().Node(nodeA); node.GetSpec().GetDesiredRole() != roleManager || node.GetCertificateExpiresAt() != 99 {
		t.Errorf("%v", node)
	}
}

func TestUpdateNode_WrongInput_Refused(t *testing.T) {
	w := newWorld(t)
	w.node(nodeA, "a", roleWorker, stateReady)
	for _, tc := range []struct {
		req  *swarmpb.UpdateNodeRequest
		code wire.Code
		part string
	}{
		{&swarmpb.UpdateNodeRequest{Node: "a"}, wire.CodeInvalid, "spec is missing"},
		{&swarmpb.UpdateNodeRequest{Node: "nope", Spec: &swarmpb.NodeSpec{}}, wire.CodeNotFound, "node ls"},
		{&swarmpb.UpdateNodeRequest{Spec: &swarmpb.NodeSpec{}}, wire.CodeInvalid, "node ls"},
		{&swarmpb.UpdateNodeRequest{Node: "a", Spec: &swarmpb.NodeSpec{}, RequestId: strings.Repeat("r", 65)}, wire.CodeInvalid, "request ID"},
		{&swarmpb.UpdateNodeRequest{Node: "a", Spec: &swarmpb.NodeSpec{DesiredRole: 9}}, wire.CodeInvalid, "role"},
		{&swarmpb.UpdateNodeRequest{Node: "a", Spec: &swarmpb.NodeSpec{Availability: -1}}, wire.CodeInvalid, "availability"},
		{&swarmpb.UpdateNodeRequest{Node: "a", Spec: &swarmpb.NodeSpec{Labels: map[string]string{"": "x"}}}, wire.CodeInvalid, "label"},
	} {
		_, err := w.server.UpdateNode(ctx, tc.req)
		expectError(t, err, tc.code, tc.part)
	}
	if w.proposes != 0 {
		t.Error("a refused update wrote something")
	}
}

func TestUpdateNode_Promote_ReadyNodesAlone(t *testing.T) {
	for state, part := range map[swarmpb.NodeState]string{stateReady: "", stateDown: "it is down", stateUnknown: "it is unknown",
		swarmpb.NodeState_NODE_STATE_DISCONNECTED: "it is disconnected"} {
		w := newWorld(t)
		w.node(nodeA, "a", roleWorker, state)
		err := w.setRole(nodeA, roleManager)
		if part != "" {
			expectError(t, err, wire.CodeFailedPrecondition, part, "promote another")
		} else if err != nil {
			t.Error(err)
		}
		if got := w.view().Node(nodeA).GetSpec().GetDesiredRole() == roleManager; got != (part == "") {
			t.Errorf("state %v: desired as manager: %v", state, got)
		}
	}
}

func TestUpdateNode_Demote_OnlyWhileAMajorityAnswers(t *testing.T) {
	const manager4, manager5 = "000000000000000000000mgr4", "000000000000000000000mgr5"
	for _, tc := range []struct {
		name  string
		setup func(w *world)
		ref   string
		parts []string // of the refusal; none: allowed
	}{
		{"the last", func(*world) {}, "boss", []string{"node boss", "last manager", "node promote"}},
		{"one of two", func(w *world) { w.manager(nodeA, "a", stateReady) }, "boss", nil},
		{"the other of two is down", func(w *world) { w.manager(nodeA, "a", stateDown) }, "boss", []string{"of the other 1, 1 must answer, and none would", "a is not ready", "bring a back"}},
		{"the one of two that is down", func(w *world) { w.manager(nodeA, "a", stateDown) }, "a", nil},
		{"the leader of three", func(w *world) { w.manager(nodeA, "a", stateReady); w.manager(nodeB, "b", stateReady) }, "boss", nil},
		{"one of three while one is down", func(w *world) { w.manager(nodeA, "a", stateReady); w.manager(nodeB, "b", stateDown) }, "a",
			[]string{"of the other 2, 2 must answer, and 1 (boss) would", "b is not ready", "demote b first"}},
		{"one of three while one is demoted", func(w *world) {
			w.manager(nodeA, "a", stateReady)
			w.manager(nodeB, "b", stateReady)
			w.desireRole(nodeB, roleWorker)
		}, "a", []string{"b is being demoted", "no manager status of b"}},
		{"one of three while one was removed", func(w *world) {
			w.manager(nodeA, "a", stateReady)
			w.members = append(w.members, Member{ID: nodeB, Voter: true})
		}, "a", []string{nodeB + " is being demoted"}},
		{"of two, and the other joins", func(w *world) { w.manager(nodeA, "a", stateReady); w.members[1].Voter = false }, "boss",
			[]string{"no other manager has a vote yet", "shows a as Reachable"}},
		{"of two, and the other is not in Raft yet", func(w *world) { w.node(nodeA, "a", roleManager, stateReady) }, "boss",
			[]string{"no other manager has a vote yet", "node promote"}},
		{"one that joins", func(w *world) {
			w.manager(nodeA, "a", stateReady)
			w.manager(nodeB, "b", stateDown)
			w.members[1].Voter = false
		}, "a", nil},
		{"one of five while one is down", func(w *world) {
			w.manager(nodeA, "a", stateReady)
			w.manager(nodeB, "b", stateReady)
			w.manager(manager4, "d", stateReady)
			w.manager(manager5, "e", stateDown)
		}, "boss", nil},
		{"one of five while two are down", func(w *world) {
			w.manager(nodeA, "a", stateReady)
			w.manager(nodeB, "b", stateReady)
			w.manager(manager4, "d", stateDown)
			w.manager(manager5, "e", stateDown)
		}, "boss", []string{"of the other 4, 3 must answer, and 2 (a, b) would", "d, e are not ready"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			tc.setup(w)
			w.proposes = 0
			err := w.setRole(tc.ref, roleWorker)
			if len(tc.parts) > 0 {
				expectError(t, err, wire.CodeFailedPrecondition, tc.parts...)
			} else if err != nil {
				t.Error(err)
			}
			if refused := w.proposes == 0; refused != (len(tc.parts) > 0) {
				t.Errorf("%d proposals", w.proposes)
			}
		})
	}
}

// atOnce lets two proposals be decided before either is applied.
type atOnce struct {
	*store.LocalProposer
	decided sync.WaitGroup
	first   sync.Map
}

func (p *atOnce) Propose(ctx context.Context, proposal *swarmpb.Proposal) (*swarmpb.Result, error) {
	if _, again := p.first.LoadOrStore(proposal.GetRequestId(), true); !again {
		p.decided.Done()
		p.decided.Wait()
	}
	return p.LocalProposer.Propose(ctx, proposal)
}

func TestUpdateNode_TwoDemotionsOfThreeAtOnce_OnePasses(t *testing.T) {
	w := newWorld(t)
	w.manager(nodeA, "a", stateReady)
	w.manager(nodeB, "b", stateReady)
	together := &atOnce{LocalProposer: w.local}
	together.decided.Add(2)
	w.server.cfg.Proposer = together
	errs := make(chan error, 2)
	for _, ref := range []string{"a", "b"} {
		go func() {
			version := w.view().Node(map[string]string{"a": nodeA, "b": nodeB}[ref]).GetMeta().GetVersion()
			_, err := w.server.UpdateNode(ctx, &swarmpb.UpdateNodeRequest{Node: ref, Version: version, Spec: &swarmpb.NodeSpec{DesiredRole: roleWorker}})
			errs <- err
		}()
	}
	first, second := <-errs, <-errs
	if (first == nil) == (second == nil) {
		t.Fatalf("both ended alike: %v, %v", first, second)
	}
	refused := first
	if refused == nil {
		refused = second
	}
	expectError(t, refused, wire.CodeFailedPrecondition, "is being demoted", "1 (boss) would")
	if demoted := (w.view().Node(nodeA).GetSpec().GetDesiredRole() == roleWorker) != (w.view().Node(nodeB).GetSpec().GetDesiredRole() == roleWorker); !demoted {
		t.Error("not exactly one was demoted")
	}
}

func TestUpdateNode_ThisManagerIsBehindTheLeader_AnswersWithWhatWasWritten(t *testing.T) {
	for _, lost := range []bool{false, true} {
		w := newWorld(t)
		w.node(nodeA, "a", roleWorker, stateReady)
		var snapshot bytes.Buffer
		if err := w.view().WriteSnapshot(&snapshot); err != nil {
			t.Fatal(err)
		}
		local, err := store.ReadSnapshot(&snapshot)
		if err != nil {
			t.Fatal(err)
		}
		asked := 0
		w.server.cfg.Store = func() *store.Store { return local }
		w.server.cfg.ReadIndex = func(context.Context) (uint64, error) {
			if asked++; asked > 1 && lost {
				return 0, errLeaderless
			} else if asked > 1 {
				local = w.store // it has caught up
			}
			return 0, nil
		}
		r, err := w.server.UpdateNode(ctx, &swarmpb.UpdateNodeRequest{Node: "a", Spec: &swarmpb.NodeSpec{DesiredRole: roleManager}})
		if err != nil || r.GetNode().GetNode().GetSpec().GetDesiredRole() != roleManager {
			t.Errorf("leader lost: %v: %v %v", lost, r, err)
		}
	}
}
