package manager

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/swarmd/swarmd/manager/replica"
	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// model is Raft and the cluster's nodes for the property.
type model struct {
	t       *rapid.T
	store   *store.Store
	rows    map[string]row
	members []replica.Member
	leader  string
	alive   map[string]bool // as its rows say, but for nodes that were removed
	behind  map[string]bool
	made    int // addresses
}

func (m *model) address() string {
	m.made++
	return fmt.Sprintf("10.0.%d.%d:2377", m.made/250, m.made%250+1)
}

func (m *model) situation() *situation {
	putRows(m.t, m.store, m.rows)
	address := m.find(m.leader).Address
	if r := m.rows[m.leader]; r.address != "" {
		address = r.address
	}
	return &situation{self: m.leader, address: address, view: m.store.View(), members: slices.Clone(m.members), caughtUp: func(id string) bool { return m.alive[id] && !m.behind[id] }}
}

func (m *model) find(id string) *replica.Member {
	for i := range m.members {
		if m.members[i].ID == id {
			return &m.members[i]
		}
	}
	return nil
}

// answering says whether the voters have a majority that answers: without one nobody leads.
func (m *model) answering() bool {
	voters, ready := 0, 0
	for _, member := range m.members {
		if member.Voter {
			voters++
			if m.alive[member.ID] {
				ready++
			}
		}
	}
	return ready > voters/2
}

func (m *model) take(s step) {
	switch s.kind {
	case stepAdd:
		m.members = append(m.members, replica.Member{ID: s.node, Address: s.address})
	case stepMove:
		m.find(s.node).Address = s.address
	case stepVote:
		m.find(s.node).Voter = true
	case stepHandOver:
		if !m.find(s.node).Voter {
			m.t.Fatalf("%v to one without a vote", s)
		}
		m.leader = s.node
	case stepRemove:
		if s.node == m.leader {
			m.t.Fatalf("%v removes the leader", s)
		}
		m.members = slices.DeleteFunc(m.members, func(member replica.Member) bool { return member.ID == s.node })
		if r, ok := m.rows[s.node]; ok && r.desired == workerRole {
			r.certified = workerRole // out of Raft it gets a worker's certificate
			m.rows[s.node] = r
		}
	}
	m.check(s)
}

func (m *model) check(s step) {
	at := make(map[string]string)
	for _, member := range m.members {
		if other := at[member.Address]; other != "" {
			m.t.Fatalf("after %v both %s and %s are at %s", s, other, member.ID, member.Address)
		}
		at[member.Address] = member.ID
	}
	if leader := m.find(m.leader); leader == nil || !leader.Voter {
		m.t.Fatalf("after %v the leader has no vote: %v", s, m.members)
	}
	if !m.answering() {
		m.t.Fatalf("after %v there is no majority that answers: %v", s, m.members)
	}
}

// certify is what the CA does at a renewal.
func (m *model) certify(id string) {
	r, ok := m.rows[id]
	if ok && (r.desired == managerRole || m.find(id) == nil) {
		r.certified = r.desired
		m.rows[id] = r
	}
}

// change is one thing that happens beside the loop.
func (m *model) change(ids []string) {
	id := rapid.SampledFrom(ids).Draw(m.t, "node")
	r, known := m.rows[id]
	before, alive := m.rows, m.alive
	m.rows, m.alive = maps.Clone(m.rows), maps.Clone(m.alive)
	switch rapid.SampledFrom([]string{"promote", "demote", "remove", "certify", "ready", "down", "move", "log", "lead"}).Draw(m.t, "event") {
	case "promote":
		if !known {
			r = row{certified: workerRole, state: nodeReady, address: m.address()}
			m.alive[id] = true
		}
		r.desired = managerRole
		m.rows[id] = r
	case "demote":
		if known {
			r.desired = workerRole
			m.rows[id] = r
		}
	case "remove":
		delete(m.rows, id)
	case "certify":
		m.certify(id)
	case "ready":
		if known {
			r.state, m.alive[id] = nodeReady, true
			m.rows[id] = r
		}
	case "down":
		if known && id != m.leader {
			r.state, m.alive[id] = nodeDown, false
			m.rows[id] = r
		}
	case "move":
		if known {
			r.address = m.address()
			if taken := rapid.SampledFrom(m.members).Draw(m.t, "takes"); rapid.IntRange(0, 3).Draw(m.t, "same") == 0 {
				r.address = taken.Address
			}
			m.rows[id] = r
		}
	case "log":
		m.behind[id] = !m.behind[id]
	case "lead":
		if member := m.find(id); member != nil && member.Voter && known && r.state == nodeReady {
			m.leader = id
		}
	}
	if !m.answering() {
		m.rows, m.alive = before, alive // then nobody leads: the loop does not run
	}
}

// settle ends the faults: every node answers at an address of its own, or at that of a node that is gone.
func (m *model) settle(ids []string) (want []string) {
	gone := make(map[string]bool)
	for _, member := range m.members {
		if r := m.rows[member.ID]; r.desired != managerRole && member.ID != m.leader {
			gone[member.Address] = true
		}
	}
	free := slices.Sorted(maps.Keys(gone))
	for _, id := range ids {
		r, known := m.rows[id]
		if !known {
			continue
		}
		r.state, r.address, m.alive[id] = nodeReady, m.address(), true
		if len(free) > 0 && id != m.leader && rapid.Bool().Draw(m.t, "inherits") {
			r.address, free = free[0], free[1:]
		}
		m.rows[id] = r
	}
	clear(m.behind)
	m.alive = maps.Clone(m.alive)
	if id := rapid.SampledFrom(ids).Draw(m.t, "stays"); true {
		r := m.rows[id]
		if r.address == "" {
			r.address = m.address()
		}
		r.desired, r.state, m.alive[id] = managerRole, nodeReady, true
		m.rows[id] = r
	}
	for _, id := range ids {
		m.certify(id)
		if m.rows[id].desired == managerRole {
			want = append(want, id)
		}
	}
	return want
}

func TestSteps_AnyStartAndAnyChanges_ConvergesSafely(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ids := []string{"n1", "n2", "n3", "n4", "n5", "n6", "n7"}
		m := &model{t: t, store: store.New(), rows: make(map[string]row), leader: "n1", behind: make(map[string]bool), alive: make(map[string]bool)}
		for i, id := range ids {
			address := m.address()
			m.alive[id] = true
			if i == 0 || rapid.Bool().Draw(t, "member") {
				m.members = append(m.members, replica.Member{ID: id, Address: address, Voter: i == 0 || rapid.Bool().Draw(t, "voter")})
				m.rows[id] = managerAt(address)
			} else if rapid.Bool().Draw(t, "node") {
				m.rows[id] = row{rapid.SampledFrom([]swarmpb.NodeRole{managerRole, workerRole}).Draw(t, "desired"), workerRole, nodeReady, address}
			}
		}
		for range rapid.IntRange(0, 60).Draw(t, "events") {
			if rapid.Bool().Draw(t, "the loop is slow") {
				m.change(ids)
				continue
			}
			if steps, _ := m.situation().steps(); len(steps) > 0 {
				m.take(rapid.SampledFrom(steps).Draw(t, "step")) // each may be taken on its own
			}
		}
		want := m.settle(ids)
		for range 100 {
			steps, _ := m.situation().steps()
			if len(steps) == 0 {
				break
			}
			m.take(steps[0])
			for _, id := range ids {
				m.certify(id)
			}
		}
		var got []string
		for _, member := range m.members {
			if !member.Voter || member.Address != m.rows[member.ID].address {
				t.Errorf("%v at the end; its node is at %s", member, m.rows[member.ID].address)
			}
			got = append(got, member.ID)
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Fatalf("voters %v, desired managers %v", got, want)
		}
	})
}
