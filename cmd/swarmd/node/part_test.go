package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// remembers rewrites the managers in node.json.
func (h *host) remembers(t *testing.T, managers ...string) {
	t.Helper()
	n := &Node{cfg: h.cfg}
	st, _, err := n.load()
	if err != nil {
		t.Fatal(err)
	}
	st.Managers = managers
	if err := n.saveState(st); err != nil {
		t.Fatal(err)
	}
}

// damage spoils the Raft log, and returns what is in it then.
func (h *host) damage(t *testing.T) (file string, content []byte) {
	t.Helper()
	file = filepath.Join(h.cfg.DataDir, "manager", "raft", "raft.db")
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for i := range content {
		content[i] ^= 0x55
	}
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return file, content
}

func problems(info *swarmpb.GetInfoResponse) string { return strings.Join(info.GetProblems(), "\n") }

func TestStart_PortTakenWithOtherManagersKnown_WorkerGoesOnUntilThePortIsFree(t *testing.T) {
	h := newHost(t)
	n := h.run(t)
	n.initCluster(t)
	n.stop()
	h.remembers(t, h.cfg.ListenAddr, freeAddress(t, "127.0.0.1"))
	taken, err := net.Listen("tcp", h.cfg.ListenAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	n = h.run(t)
	until(t, "the problem is shown", func(ctx context.Context) error {
		info, err := n.info(ctx)
		if err == nil && (!strings.Contains(problems(info), "manager does not work") || !strings.Contains(problems(info), "the port is taken")) {
			err = fmt.Errorf("problems: %s", problems(info))
		}
		return err
	})
	if _, err := n.control.ListNodes(t.Context(), &swarmpb.ListNodesRequest{}); wire.CodeOf(err) != wire.CodeUnavailable || !strings.Contains(err.Error(), "try another manager") {
		t.Errorf("a manager that does not work answered: %v", err)
	}
	if _, err := n.local.Leave(t.Context(), &swarmpb.LeaveRequest{}); err == nil || !strings.Contains(err.Error(), "--force") {
		t.Errorf("leave: %v", err)
	}
	taken.Close()
	until(t, "the manager works", func(ctx context.Context) error {
		if _, err := n.control.ListNodes(ctx, &swarmpb.ListNodesRequest{}); err != nil {
			return err
		}
		info, err := n.info(ctx)
		if err == nil && len(info.GetProblems()) > 0 {
			err = fmt.Errorf("problems: %s", problems(info))
		}
		return err
	})
}

func TestStart_OnlyManagerWithDamagedData_IsAnErrorAndNothingIsTouched(t *testing.T) {
	h := newHost(t)
	n := h.run(t)
	n.initCluster(t)
	n.stop()
	file, damaged := h.damage(t)
	again, err := New(h.cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := again.Run(ctx); err == nil || !strings.Contains(err.Error(), "cannot be used") {
		t.Errorf("run: %v", err)
	}
	if content, err := os.ReadFile(file); err != nil || string(content) != string(damaged) {
		t.Errorf("the data has changed: %v", err)
	}
	if entries, err := os.ReadDir(filepath.Dir(filepath.Dir(file))); err != nil || len(entries) == 0 {
		t.Errorf("the manager's directory: %v, %v", entries, err)
	}
}

// The worker goes on, the data is set aside, and the manager is a voter again.
func TestStart_OneOfThreeManagersWithDamagedData_BeginsAgainFromTheOthers(t *testing.T) {
	one, two, three := threeManagers(t)
	voters := []string{one.id(t), two.id(t), three.id(t)}
	two.stop()
	_, damaged := two.damage(t)
	two = two.run(t)
	two.voters(t, voters...)
	until(t, "it has what the others have", func(ctx context.Context) error {
		_, err := two.control.GetService(ctx, &swarmpb.GetServiceRequest{Service: "web"})
		return err
	})
	kept, err := filepath.Glob(filepath.Join(two.node.managerDir(), "*damaged*", "raft.db"))
	if err != nil || len(kept) != 1 {
		t.Fatalf("set aside: %v, %v", kept, err)
	}
	if content, err := os.ReadFile(kept[0]); err != nil || string(content) != string(damaged) {
		t.Errorf("what was set aside is not what was damaged: %v", err)
	}
}

// Without a majority of the others the data stays, and the host says why its manager does not work.
func TestStart_DamagedDataAndNoOthersThatAnswer_KeepsItAndSaysSo(t *testing.T) {
	h := newHost(t)
	n := h.run(t)
	n.initCluster(t)
	n.stop()
	h.remembers(t, h.cfg.ListenAddr, freeAddress(t, "127.0.0.1"))
	file, damaged := h.damage(t)
	n = h.run(t)
	until(t, "the problem is shown", func(ctx context.Context) error {
		info, err := n.info(ctx)
		if err == nil && !strings.Contains(problems(info), "damaged") {
			err = fmt.Errorf("problems: %s", problems(info))
		}
		return err
	})
	n.stop()
	if content, err := os.ReadFile(file); err != nil || string(content) != string(damaged) {
		t.Errorf("the data has changed: %v", err)
	}
}

func TestStart_WorkerWithLeftOverManagerData_RemovesIt(t *testing.T) {
	hosts := newHosts(t, 2)
	one, two := hosts[0].run(t), hosts[1].run(t)
	two.join(t, one.initCluster(t).GetTokens().GetWorker(), one)
	two.stop()
	left := filepath.Join(two.node.managerDir(), "raft")
	if err := os.MkdirAll(left, 0o700); err != nil {
		t.Fatal(err)
	}
	two = hosts[1].run(t)
	until(t, "what is left is removed", func(ctx context.Context) error {
		if _, err := os.Stat(two.node.managerDir()); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("the manager's directory: %v", err)
		}
		info, err := two.info(ctx)
		if err == nil && info.GetMembership() != swarmpb.Membership_MEMBERSHIP_ACTIVE {
			err = fmt.Errorf("%v", info)
		}
		return err
	})
}

// While the certificate is not the wanted one yet, or node.json cannot be written, the work must end all the same.
func TestStop_RoleAndManagersNotSettled_Ends(t *testing.T) {
	n := newHost(t).run(t)
	n.initCluster(t)
	m := n.node.current()
	m.want(roleWorker) // the CA of the only manager does not agree
	if err := os.Mkdir(n.node.stateFile()+".d", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(n.node.stateFile()), os.Rename(n.node.stateFile()+".d", n.node.stateFile())); err != nil {
		t.Fatal(err)
	}
	m.learn([]*swarmpb.ManagerPeer{{Address: "192.0.2.1:2377"}})
	ended := make(chan struct{})
	go func() { n.node.stopMember(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Fatal("the node's work does not end")
	}
}

func TestLeave_OfTheOnlyManager_IsRefusedWithTheReason(t *testing.T) {
	n := newHost(t).run(t)
	n.initCluster(t)
	if _, err := n.local.Leave(t.Context(), &swarmpb.LeaveRequest{}); wire.CodeOf(err) != wire.CodeFailedPrecondition ||
		!strings.Contains(err.Error(), "last manager") || !strings.Contains(err.Error(), "--force") {
		t.Errorf("leave: %v", err)
	}
	if _, err := n.control.ListNodes(t.Context(), &swarmpb.ListNodesRequest{}); err != nil {
		t.Error(err)
	}
}

// A worker that leaves while it is promoted would stay behind as a manager that never comes.
func TestLeave_WhilePromoted_IsRefusedUnlessForced(t *testing.T) {
	hosts := newHosts(t, 2)
	one, two := hosts[0].run(t), hosts[1].run(t)
	two.join(t, one.initCluster(t).GetTokens().GetWorker(), one)
	m := two.node.current()
	until(t, "its role is told", func(context.Context) error {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.wanted != roleWorker {
			return fmt.Errorf("told %v", m.wanted)
		}
		return nil
	})
	m.want(roleManager) // the CA does not know of it: so it stays like this
	if _, err := two.local.Leave(t.Context(), &swarmpb.LeaveRequest{}); wire.CodeOf(err) != wire.CodeUnavailable || !strings.Contains(err.Error(), "becoming a manager") {
		t.Errorf("leave: %v", err)
	}
	if _, err := two.local.Leave(t.Context(), &swarmpb.LeaveRequest{Force: true}); err != nil {
		t.Error(err)
	}
}

// A manager that somebody has demoted, and that has yet to hear of it, leaves once it has.
func TestLeave_WhileDemoted_WaitsUntilItIsAWorker(t *testing.T) {
	hosts := newHosts(t, 2)
	one, two := hosts[0].run(t), hosts[1].run(t)
	two.join(t, one.initCluster(t).GetTokens().GetManager(), one)
	nodeID := two.id(t)
	one.voters(t, one.id(t), nodeID)
	two.holdRole()
	until(t, "demote", func(ctx context.Context) error { return one.setRole(ctx, nodeID, roleWorker) })
	one.voters(t, one.id(t))
	m := two.node.current()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := m.resign(ctx); err == nil || !strings.Contains(err.Error(), "is being demoted") {
		t.Errorf("leave before it has heard of it: %v", err)
	}
	m.update(func() { m.clearing = false })
	if _, err := two.local.Leave(t.Context(), &swarmpb.LeaveRequest{}); err != nil {
		t.Error(err)
	}
}

func TestLeave_WithoutAMajority_NamesTheWayOut(t *testing.T) {
	hosts := newHosts(t, 2)
	one, two := hosts[0].run(t), hosts[1].run(t)
	two.join(t, one.initCluster(t).GetTokens().GetManager(), one)
	one.voters(t, one.id(t), two.id(t))
	two.stop()
	if _, err := one.local.Leave(t.Context(), &swarmpb.LeaveRequest{}); err == nil || !strings.Contains(err.Error(), "leave --force") {
		t.Errorf("leave: %v", err)
	}
}

func TestInfo_GossipPortTaken_IsAProblemAndNoMore(t *testing.T) {
	h := newHost(t)
	taken, err := net.Listen("tcp", h.cfg.GossipAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	n := h.run(t)
	n.initCluster(t)
	until(t, "the problem is shown", func(ctx context.Context) error {
		info, err := n.info(ctx)
		if err == nil && (!strings.Contains(problems(info), "no part in gossip") || info.GetMembership() != swarmpb.Membership_MEMBERSHIP_ACTIVE) {
			err = fmt.Errorf("%v", info)
		}
		return err
	})
}

// A watch on the local socket ends with the manager, and says what to do.
func TestStop_WatchUnderWay_IsToldToTryAnotherManager(t *testing.T) {
	n := newHost(t).run(t)
	n.initCluster(t)
	n.createService(t, "web", 1)
	watch, err := n.control.WatchService(t.Context(), &swarmpb.WatchServiceRequest{Service: "web"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan error, 1)
	go func() {
		for {
			if _, err := watch.Recv(); err != nil {
				stopped <- wire.FromStatus(err)
				return
			}
		}
	}()
	n.node.shutDown()
	if err := <-stopped; wire.CodeOf(err) != wire.CodeUnavailable || !strings.Contains(err.Error(), "try another manager") {
		t.Errorf("the watch ended with %v", err)
	}
	if _, err := n.control.ListNodes(t.Context(), &swarmpb.ListNodesRequest{}); wire.CodeOf(err) != wire.CodeUnavailable || !strings.Contains(err.Error(), "stopping") {
		t.Errorf("a call after the manager has stopped: %v", err)
	}
}
