package dispatcher

import (
	"bytes"
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// peersLab follows a store as the server does.
type peersLab struct {
	*testing.T
	store *store.Store
	local *store.LocalProposer
	reach *reach
	watch *store.Watch
}

func newPeersLab(t *testing.T) *peersLab {
	st := store.New()
	l := &peersLab{T: t, store: st, local: store.NewLocalProposer(st), reach: newReach(100)}
	l.put(&swarmpb.Row{Row: &swarmpb.Row_Cluster{Cluster: &swarmpb.Cluster{Id: "c", Spec: &swarmpb.ClusterSpec{FabricPool: "100.64.0.0/10"}}}})
	l.reach.step(st.View(), l.reach.everything(st.View()))
	var err error
	if l.watch, err = st.Watch(st.View().Index(), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.watch.Close)
	return l
}

func (l *peersLab) put(rows ...*swarmpb.Row) {
	l.Helper()
	var writes []*swarmpb.Write
	for _, row := range rows {
		writes = append(writes, &swarmpb.Write{Op: &swarmpb.Write_Put{Put: row}})
	}
	l.write(writes...)
}

func (l *peersLab) write(writes ...*swarmpb.Write) {
	l.Helper()
	if _, err := l.local.Propose(context.Background(), &swarmpb.Proposal{Now: time.Now().UnixNano(), Writes: writes}); err != nil {
		l.Fatal(err)
	}
}

// node has a node seen at an address, and say that it has others.
func (l *peersLab) node(id, block, seen string, says ...string) {
	l.Helper()
	l.put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: &swarmpb.Node{Id: id}}},
		&swarmpb.Row{Row: &swarmpb.Row_Allocation{Allocation: &swarmpb.Allocation{Pool: poolUplink, Address: block, Owner: id}}},
		&swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: &swarmpb.NodeStatus{NodeId: id, Address: seen,
			Description: &swarmpb.NodeDescription{Network: &swarmpb.NodeNetwork{Addresses: says}}}}})
}

// want compares what is told of a node after the changes so far, and with what is told when everything is looked at anew.
func (l *peersLab) want(id string, others ...string) {
	l.Helper()
	for l.reach.view.Index() < l.store.View().Index() {
		batch, err := l.watch.Next(l.Context())
		if err != nil {
			l.Fatal(err)
		}
		t := newTouched()
		for i := range batch.Changes {
			t.see(batch.View, &batch.Changes[i])
		}
		l.reach.step(batch.View, t)
	}
	got, _ := l.reach.peers.Get(id)
	if all := decode(l, []message{got.said})[0].GetPeer().GetOtherAddresses(); !slices.Equal(all, others) {
		l.Errorf("node %s is told with %q, want %q", id, all, others)
	}
	anew := newReach(100)
	anew.step(l.store.View(), anew.everything(l.store.View()))
	if fresh, _ := anew.peers.Get(id); !bytes.Equal(fresh.said, got.said) {
		l.Errorf("node %s is told as %q, and as %q when everything is looked at anew", id, got.said, fresh.said)
	}
}

func TestPeers_AddressesThatAreNotTheHostsOwn_AreToldToNobody(t *testing.T) {
	l := newPeersLab(t)
	prefix6 := swarmpb.FabricPrefix6("c")
	l.node("n1", "100.64.1.0/24", "192.0.2.1", "192.0.2.1", "192.0.2.11", "fd77::1", "192.0.2.2", "100.65.0.1", swarmpb.Address6(prefix6, netip.MustParseAddr("100.64.1.1")).String(), "127.0.0.1", "224.0.0.1", "10.0.4.9")
	l.want("n1", "192.0.2.11", "fd77::1", "192.0.2.2", "10.0.4.9")
	// The owner of an address is seen: the other's word counts no more, until it has gone.
	l.node("n2", "100.64.2.0/24", "192.0.2.2", "192.0.2.1", "192.0.2.12")
	l.want("n1", "192.0.2.11", "fd77::1", "10.0.4.9")
	l.want("n2", "192.0.2.12")
	l.node("n2", "100.64.2.0/24", "192.0.2.3", "192.0.2.1", "192.0.2.12")
	l.want("n1", "192.0.2.11", "fd77::1", "192.0.2.2", "10.0.4.9")
	l.node("n2", "100.64.2.0/24", "192.0.2.11")
	l.want("n1", "fd77::1", "192.0.2.2", "10.0.4.9")
	l.write(&swarmpb.Write{Op: &swarmpb.Write_Delete{Delete: swarmpb.NodeKey("n2")}})
	l.want("n1", "192.0.2.11", "fd77::1", "192.0.2.2", "10.0.4.9")
	// So do addresses of networks, for as long as there is the network.
	l.put(&swarmpb.Row{Row: &swarmpb.Row_Network{Network: &swarmpb.Network{Id: "back", Spec: &swarmpb.NetworkSpec{Name: "back"}}}},
		&swarmpb.Row{Row: &swarmpb.Row_NetworkProgress{NetworkProgress: &swarmpb.NetworkProgress{NetworkId: "back", Vni: 4096, Subnet: "10.0.4.0/24", Subnet6: "fd77::/64"}}})
	l.want("n1", "192.0.2.11", "192.0.2.2")
	l.write(&swarmpb.Write{Op: &swarmpb.Write_Delete{Delete: swarmpb.NetworkKey("back")}})
	l.want("n1", "192.0.2.11", "fd77::1", "192.0.2.2", "10.0.4.9")
}
