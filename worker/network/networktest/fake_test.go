package networktest

import (
	"errors"
	"slices"
	"testing"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker"
	"github.com/swarmd/swarmd/worker/network"
)

var _ worker.Network = (*Fake)(nil)

func TestFake_BehavesAsTheNetworkDoes(t *testing.T) {
	n, ctx := &Fake{}, t.Context()
	if _, err := n.Attach(ctx, network.Request{TaskID: "a"}); !errors.Is(err, network.ErrNotConfigured) {
		t.Errorf("attached without a block: %v", err)
	}
	if err := n.Configure(ctx, &swarmpb.NodeConfig{UplinkBlock: "100.64.3.0/30"}); err != nil {
		t.Fatal(err)
	}
	a, err := n.Attach(ctx, network.Request{TaskID: "a"})
	again, _ := n.Attach(ctx, network.Request{TaskID: "a"})
	b, _ := n.Attach(ctx, network.Request{TaskID: "b"})
	if err != nil || a.Address != again.Address || a.Address == b.Address || a.Namespace == b.Namespace {
		t.Errorf("attached %v, again %v, another %v: %v", a, again, b, err)
	}
	if _, err := n.Attach(ctx, network.Request{TaskID: "c"}); !errors.Is(err, network.ErrBlockFull) {
		t.Errorf("attached beyond the block: %v", err)
	}
	bound, err := n.Publish(ctx, "a", []*swarmpb.PortConfig{{TargetPort: 80, PublishedPort: 8080}, {TargetPort: 81}})
	if err != nil || len(bound) != 2 || bound[1].PublishedPort == 0 {
		t.Errorf("published %v: %v", bound, err)
	}
	if _, err := n.Publish(ctx, "b", []*swarmpb.PortConfig{{TargetPort: 80, PublishedPort: 81}, {TargetPort: 80, PublishedPort: 8080}}); !errors.Is(err, network.ErrPortTaken) {
		t.Errorf("published a port twice: %v", err)
	}
	if len(n.Ports()) != 2 {
		t.Errorf("ports are %v: all or none are published", n.Ports())
	}
	if err := errors.Join(n.Detach(ctx, "a"), n.Detach(ctx, "a")); err != nil || len(n.Ports()) != 0 {
		t.Errorf("detached: %v, ports %v", err, n.Ports())
	}
	c, err := n.Attach(ctx, network.Request{TaskID: "c"})
	if err != nil || c.Address != a.Address {
		t.Errorf("a free address is not given again: %v, %v", c, err)
	}
	if err := n.Sweep(ctx, []string{"c"}); err != nil || !slices.Equal(n.Attached(), []string{"c"}) {
		t.Errorf("attached after a sweep: %q, %v", n.Attached(), err)
	}
	if err := n.Teardown(ctx); err != nil || !n.TornDown() || len(n.Attached()) != 0 {
		t.Errorf("torn down: %v", err)
	}
}
