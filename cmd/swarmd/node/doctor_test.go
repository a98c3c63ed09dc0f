package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/doctor"
)

const (
	findingOK      = swarmpb.Finding_FINDING_OK
	findingWarning = swarmpb.Finding_FINDING_WARNING
	findingProblem = swarmpb.Finding_FINDING_PROBLEM
)

// examine is what the doctor finds, by check.
func examine(ctx context.Context, local swarmpb.LocalClient) (map[string]*swarmpb.DoctorResponse, error) {
	stream, err := local.Doctor(ctx, &swarmpb.DoctorRequest{})
	if err != nil {
		return nil, err
	}
	found := map[string]*swarmpb.DoctorResponse{}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return nil, err
		}
		found[r.GetCheck()] = r
	}
}

func wantFinding(t *testing.T, found map[string]*swarmpb.DoctorResponse, check string, want swarmpb.Finding, says string) {
	t.Helper()
	r := found[check]
	if r.GetFinding() != want || !strings.Contains(r.GetDetail(), says) || (want == findingOK) != (r.GetAdvice() == "") {
		t.Errorf("%s: %v, want %s: %s", check, r, want.Name(), says)
	}
}

func TestDoctor_HostWithoutACluster_LooksAtTheHostAndItsPorts(t *testing.T) {
	h := newHost(t)
	taken, err := net.Listen("tcp", h.cfg.ListenAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, local, _ := h.start(t)
	found, err := eventually(t, func(ctx context.Context) (map[string]*swarmpb.DoctorResponse, error) { return examine(ctx, local) })
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(h.cfg.ListenAddr)
	_, gossip, _ := net.SplitHostPort(h.cfg.GossipAddr)
	wantFinding(t, found, "port "+port+"/tcp", findingProblem, "something else")
	wantFinding(t, found, "port "+gossip+"/tcp", findingOK, "free")
	wantFinding(t, found, "port "+gossip+"/udp", findingOK, "free")
	wantFinding(t, found, "kernel vxlan", findingOK, "works") // the network's part
	wantFinding(t, found, "OCI runtime", findingOK, "runc 1.0")
	wantFinding(t, found, "containerd", findingOK, "version")
	wantFinding(t, found, "registries", findingOK, "")
	for _, name := range []string{"cgroups", "free space in " + h.cfg.DataDir, "free space in " + h.cfg.RunDir} {
		if found[name] == nil {
			t.Errorf("%s is not looked at", name)
		}
	}
}

func TestDoctor_Member_LooksAtTheOthersAndTheClock(t *testing.T) {
	hosts := newHosts(t, 2)
	first, second := hosts[0].run(t), hosts[1].run(t)
	founded := first.initCluster(t)
	second.join(t, founded.GetTokens().GetWorker(), first)
	at := hosts[1].ip() + " (node " + second.id(t) + ")"
	_, gossip, _ := net.SplitHostPort(hosts[0].cfg.GossipAddr)
	tcp, udp := "port "+gossip+"/tcp to "+at, "port "+gossip+"/udp to "+at
	var found map[string]*swarmpb.DoctorResponse
	until(t, "all is well", func(ctx context.Context) (err error) {
		if found, err = examine(ctx, first.local); err != nil {
			return err
		}
		for _, name := range []string{"session with a manager", "clock", "gossip", tcp, udp} {
			if found[name].GetFinding() != findingOK {
				return fmt.Errorf("%s: %v", name, found[name])
			}
		}
		return nil
	})
	_, port, _ := net.SplitHostPort(hosts[0].cfg.ListenAddr)
	until(t, "the worker sees its manager", func(ctx context.Context) error {
		found, err := examine(ctx, second.local)
		if name := "port " + port + "/tcp of manager " + hosts[0].cfg.ListenAddr; err == nil && found[name].GetFinding() != findingOK {
			err = fmt.Errorf("%s: %v", name, found[name])
		}
		return err
	})
	second.stop()
	found, err := examine(t.Context(), first.local)
	if err != nil {
		t.Fatal(err)
	}
	wantFinding(t, found, tcp, findingProblem, "refused")
	wantFinding(t, found, udp, findingProblem, "no answer")
}

func TestNode_NetworkRunsBesideItAndKnowsThePeers(t *testing.T) {
	hosts := newHosts(t, 2)
	first, second := hosts[0].run(t), hosts[1].run(t)
	founded := first.initCluster(t)
	second.join(t, founded.GetTokens().GetWorker(), first)
	id := second.id(t)
	network := first.node.network.(*fakeNetwork)
	if !network.running.Load() {
		t.Error("the network does not run")
	}
	until(t, "the nodes know of one another", func(context.Context) error {
		m := first.node.current()
		if len(network.Peers()) < 2 || len(m.gossipMembers()) < 1 {
			return fmt.Errorf("%d peers, %d in gossip", len(network.Peers()), len(m.gossipMembers()))
		}
		return nil
	})
	if network.Dead(id) {
		t.Error("a node that lives is called dead")
	}
	first.stop()
	if network.running.Load() {
		t.Error("the network still runs")
	}
}

func TestDoctor_Clock_Judged(t *testing.T) {
	for _, c := range []struct {
		ahead, within time.Duration
		want          swarmpb.Finding
	}{
		{20 * time.Millisecond, time.Millisecond, findingOK},
		{-3 * time.Second, 2500 * time.Millisecond, findingOK}, // it may be right
		{-3 * time.Second, time.Millisecond, findingWarning},
		{time.Hour, time.Second, findingProblem},
	} {
		if got := judgeClock(c.ahead, c.within); got.Finding != c.want || (c.want != findingOK) != (got.Advice != "") {
			t.Errorf("%s within %s: %v", c.ahead, c.within, got)
		}
	}
}

func TestDoctor_Space_Judged(t *testing.T) {
	for _, c := range []struct {
		free, size uint64
		err        error
		want       swarmpb.Finding
	}{
		{100 << 30, 200 << 30, nil, findingOK},
		{4 << 30, 200 << 30, nil, findingWarning},
		{1 << 30, 200 << 30, nil, findingProblem},
		{1 << 30, 2 << 30, nil, findingOK},
		{10 << 20, 2 << 30, nil, findingProblem},
		{0, 0, os.ErrNotExist, findingProblem},
	} {
		got := checkSpace("/data", func(string) (uint64, uint64, error) { return c.free, c.size, c.err })
		if got.Finding != c.want {
			t.Errorf("%d of %d bytes free, %v: %v", c.free, c.size, c.err, got)
		}
	}
}

func TestDoctor_Cgroups_LackingOnesAreNamed(t *testing.T) {
	write := func(path, text string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	two, lame, one, none := t.TempDir(), t.TempDir(), t.TempDir(), t.TempDir()
	write(filepath.Join(two, "cgroup.controllers"), "cpuset cpu io memory pids\n")
	write(filepath.Join(lame, "cgroup.controllers"), "cpu pids\n")
	for _, c := range neededControllers {
		write(filepath.Join(one, c, "cgroup.procs"), "")
	}
	for root, want := range map[string]struct {
		finding swarmpb.Finding
		says    string
	}{
		two: {findingOK, "version 2"}, one: {findingOK, "version 1"},
		lame: {findingProblem, "version 2, without memory"}, none: {findingProblem, "without cpu, memory, pids"},
	} {
		if got := checkCgroups(root); got.Finding != want.finding || !strings.Contains(got.Detail, want.says) {
			t.Errorf("%v, want %s", got, want.says)
		}
		if left, _ := filepath.Glob(filepath.Join(root, "swarmd-doctor-*")); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
	}
}

func TestDoctor_Dial_RefusedAndSilentAreToldApart(t *testing.T) {
	open, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	over, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	<-over.Done()
	for _, c := range []struct {
		ctx     context.Context
		address string
		want    swarmpb.Finding
		says    string
	}{
		{t.Context(), open.Addr().String(), findingOK, "open"},
		{t.Context(), freeAddress(t, "127.0.0.1"), findingProblem, "refused"},
		{over, open.Addr().String(), findingProblem, "no answer within " + doctor.Time.String()},
	} {
		if got := dialCheck(c.ctx, c.address); got.Finding != c.want || !strings.Contains(got.Detail, c.says) {
			t.Errorf("%s: %v, want %s", c.address, got, c.says)
		}
	}
}
