package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// holdRole keeps the node as it is, whatever role it is to have: it asks for no certificate until it stops.
func (n *testNode) holdRole() {
	m := n.node.current()
	m.update(func() { m.clearing = true })
}

// certify has the CA issue the certificate of the role that the node is to have, and keeps it from the node.
func (n *testNode) certify(t *testing.T, ca *testNode, role swarmpb.NodeRole) (id wire.Identity) {
	t.Helper()
	until(t, "a certificate as "+role.Name(), func(ctx context.Context) error {
		var err error
		id, err = wire.Renew(ctx, n.node.current().creds, []string{ca.cfg.ListenAddr})
		if err == nil && id.Role != role {
			err = fmt.Errorf("it is one of a %s", id.Role.Name())
		}
		return err
	})
	return id
}

// settled waits until the node, what is on its disk and what the cluster of these other managers knows of it all say
// the role.
func (n *testNode) settled(t *testing.T, role swarmpb.NodeRole, managers ...*testNode) {
	t.Helper()
	at := managers[0]
	_, onDisk, err := n.node.load()
	if err != nil {
		t.Fatal(err)
	}
	nodeID := onDisk.NodeID
	var want []string
	for _, m := range managers {
		want = append(want, m.id(t))
	}
	if role == roleManager {
		want = append(want, nodeID)
	}
	at.voters(t, want...)
	until(t, "settled as "+role.Name(), func(ctx context.Context) error {
		info, err := n.info(ctx)
		if err != nil {
			return err
		}
		got, err := at.control.GetNode(ctx, &swarmpb.GetNodeRequest{Node: nodeID})
		if err != nil {
			return err
		}
		node := got.GetNode().GetNode()
		_, id, err := n.node.load()
		if err != nil {
			return err
		}
		_, missing := os.Stat(n.node.managerDir())
		switch {
		case info.GetRole() != role, info.GetMembership() != swarmpb.Membership_MEMBERSHIP_ACTIVE, len(info.GetProblems()) > 0:
			return fmt.Errorf("info: %v", info)
		case node.GetRole() != role, node.GetSpec().GetDesiredRole() != role:
			return fmt.Errorf("row: %v", node)
		case id == nil || id.Role != role:
			return fmt.Errorf("identity on disk: %v", id)
		case (missing == nil) != (role == roleManager):
			return fmt.Errorf("the manager's data: %v", missing)
		}
		_, err = n.control.GetService(ctx, &swarmpb.GetServiceRequest{Service: "web"})
		if role == roleWorker && errors.Is(err, wire.ErrNotManager) {
			return nil
		}
		return err
	})
}

// Each case is what a power cut between two steps leaves on the disk. The next start must end it, in the direction that
// the cluster wants, with the containers untouched.
func TestCrash_BetweenTheStepsOfPromotionAndDemotion_NextStartEndsIt(t *testing.T) {
	hosts := newHosts(t, 2)
	one, two := hosts[0].run(t), hosts[1].run(t)
	two.join(t, one.initCluster(t).GetTokens().GetWorker(), one)
	nodeID := two.id(t)
	one.isReady(t, nodeID)
	one.createService(t, "web", 4)
	var running []string
	until(t, "containers on the second host", func(context.Context) error {
		if running = two.runtime.Running(); len(running) != 2 {
			return fmt.Errorf("%d run", len(running))
		}
		return nil
	})
	mkdir := func(t *testing.T, n *Node) {
		if err := os.MkdirAll(filepath.Join(n.managerDir(), "raft"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		name string
		role swarmpb.NodeRole
		// issued: the CA has written the row and issued the certificate; saved: it is on the disk. disk is what comes after.
		issued, saved bool
		disk          func(*testing.T, *Node)
	}{
		{"promoted, no certificate yet", roleManager, false, false, nil},
		{"demoted, no certificate yet", roleWorker, false, false, nil},
		{"promoted, certificate not saved", roleManager, true, false, nil},
		{"demoted, certificate not saved", roleWorker, true, false, nil},
		{"promoted, certificate saved, no data", roleManager, true, true, nil},
		{"demoted, certificate saved, data there", roleWorker, true, true, nil},
		{"promoted, directory made", roleManager, true, true, mkdir},
		{"demoted, data half removed", roleWorker, true, true, func(t *testing.T, n *Node) {
			if err := os.Remove(filepath.Join(n.managerDir(), "raft", "raft.db")); err != nil {
				t.Fatal(err)
			}
		}},
		{"promoted, log just created", roleManager, true, true, func(t *testing.T, n *Node) {
			mkdir(t, n)
			if err := os.WriteFile(filepath.Join(n.managerDir(), "raft", "raft.db"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{"demoted, its key removed first", roleWorker, true, true, func(t *testing.T, n *Node) {
			if err := os.Remove(filepath.Join(n.managerDir(), "data.key")); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Log(step.name)
		two.holdRole()
		until(t, "change the role", func(ctx context.Context) error { return one.setRole(ctx, nodeID, step.role) })
		if step.role == roleWorker {
			one.voters(t, one.id(t))
		}
		var id wire.Identity
		if step.issued {
			id = two.certify(t, one, step.role)
		}
		two.stop()
		if step.saved {
			if err := wire.SaveIdentity(two.node.identityDir(), id); err != nil {
				t.Fatal(err)
			}
		}
		if step.disk != nil {
			step.disk(t, two.node)
		}
		two = hosts[1].run(t)
		two.settled(t, step.role, one)
		for _, id := range running {
			if !slices.Contains(two.runtime.Running(), id) || two.runtime.Starts(id) != 1 {
				t.Fatalf("%s: container %s was touched", step.name, id)
			}
		}
	}
}

// The same between the steps of a new beginning with damaged data: the vote is given up, the data moved aside.
func TestCrash_BetweenTheStepsOfARejoin_NextStartEndsIt(t *testing.T) {
	one, two, three := threeManagers(t)
	two.settled(t, roleManager, one, three)
	for _, aside := range []bool{false, true} {
		two.knowsOthers(t)
		creds := two.node.current().creds
		two.stop()
		two.damage(t)
		until(t, "its vote is taken", func(ctx context.Context) error {
			leading, _ := leader(t, one, three)
			conn, err := wire.Dial(leading.cfg.ListenAddr, creds)
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = swarmpb.NewReplicaClient(conn).Rejoin(ctx, &swarmpb.RejoinRequest{})
			return wire.FromStatus(err)
		})
		if aside {
			raft := filepath.Join(two.node.managerDir(), "raft")
			if err := os.Rename(raft, raft+".damaged-7"); err != nil {
				t.Fatal(err)
			}
		}
		two = two.run(t)
		two.settled(t, roleManager, one, three)
	}
}

// A manager whose data is gone has forgotten what it acknowledged. With its vote another one that has not got it
// either could lead: so it has no part in decisions before the others have taken its vote.
func TestStart_ManagerWhoseDataIsGone_DoesNotVoteBeforeTheOthersHaveTakenItsVote(t *testing.T) {
	one, two, three := threeManagers(t)
	voters := []string{one.id(t), two.id(t), three.id(t)}
	three.stop()
	two.stop()
	if err := os.RemoveAll(two.node.managerDir()); err != nil {
		t.Fatal(err)
	}
	two = two.run(t)
	until(t, "the problem is shown", func(ctx context.Context) error {
		info, err := two.info(ctx)
		if err == nil && !strings.Contains(problems(info), "missing") {
			err = fmt.Errorf("problems: %s", problems(info))
		}
		return err
	})
	if _, err := os.Stat(filepath.Join(two.node.managerDir(), "raft")); err == nil {
		t.Error("it has begun anew while the others count on its vote")
	}
	three = three.run(t)
	three.voters(t, voters...)
}

func TestStart_OnlyManagerWhoseDataIsGone_IsAnErrorThatSaysSo(t *testing.T) {
	h := newHost(t)
	n := h.run(t)
	n.initCluster(t)
	n.stop()
	if err := os.RemoveAll(n.node.managerDir()); err != nil {
		t.Fatal(err)
	}
	again, err := New(h.cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := again.Run(ctx); err == nil || !strings.Contains(err.Error(), "missing") || !strings.Contains(err.Error(), n.node.managerDir()) {
		t.Errorf("run: %v", err)
	}
	if _, err := os.Stat(n.node.managerDir()); err == nil {
		t.Error("it has begun anew")
	}
}

// The leader takes no vote from a worker, so there is nothing to wait for: what is damaged goes, and the node goes on.
func TestStart_DamagedManagerThatWasDemotedMeanwhile_IsAWorkerSoon(t *testing.T) {
	one, two, three := threeManagers(t)
	two.settled(t, roleManager, one, three)
	nodeID := two.id(t)
	two.stop()
	until(t, "demote", func(ctx context.Context) error { return one.setRole(ctx, nodeID, roleWorker) })
	one.voters(t, one.id(t), three.id(t))
	two.damage(t)
	two = two.run(t)
	began := time.Now()
	two.settled(t, roleWorker, one, three)
	if took := time.Since(began); took > 25*time.Second { // it gives up the search for a leader after 30
		t.Errorf("it took %s", took)
	}
}

// A leave that fails half-way has removed the identity: the host is still a node, and so must be after the next start.
func TestLeave_ThatFailsAfterTheIdentityIsGone_WritesItAgain(t *testing.T) {
	h := newHost(t)
	n := h.run(t)
	nodeID := n.initCluster(t).GetNodeId()
	if err := os.Rename(h.cfg.DataDir, h.cfg.DataDir+".away"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.local.Leave(t.Context(), &swarmpb.LeaveRequest{Force: true}); err == nil || !strings.Contains(err.Error(), "still in its cluster") {
		t.Fatalf("leave: %v", err)
	}
	if id, err := wire.LoadIdentity(n.node.identityDir()); err != nil || id.NodeID != nodeID {
		t.Errorf("on disk: %s, %v; want %s", id.NodeID, err, nodeID)
	}
	if got := n.id(t); got != nodeID {
		t.Errorf("the host is node %q, want %s", got, nodeID)
	}
}
