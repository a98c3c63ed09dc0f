package replica

import (
	"slices"

	"github.com/hashicorp/raft"
)

// membership is a configuration of Raft's and the index of the entry that holds it.
type membership struct {
	index   uint64
	servers []raft.Server
}

// memberships are the newest configurations in the log. Raft has at most one that is not committed, so two are enough
// to know the newest at any index that matters.
//
// Raft's own idea cannot be relied on: a leader that fails to write a new configuration believes in it nevertheless,
// until another one comes, and takes it for committed when other entries have reached its index.
type memberships struct {
	known     []membership // ascending, two at most
	unwritten uint64       // index at which a configuration could not be written; Raft may believe in it. 0: none
}

// append notes an entry that was written, if it holds a configuration.
func (m *memberships) append(entry *raft.Log) {
	if entry.Type != raft.LogConfiguration {
		return
	}
	m.known = append(m.known, membership{entry.Index, raft.DecodeConfiguration(entry.Data).Servers})
	m.known = m.known[max(0, len(m.known)-2):]
	m.unwritten = 0
}

// cut forgets what is replaced from there on.
func (m *memberships) cut(from uint64) {
	m.known = slices.DeleteFunc(m.known, func(k membership) bool { return k.index >= from })
}

// fail notes entries that were not written.
func (m *memberships) fail(entries []*raft.Log) {
	for _, e := range entries {
		if e.Type == raft.LogConfiguration {
			m.unwritten = e.Index
		}
	}
}

// membershipAt is the newest configuration in the log or in a snapshot at or before index, and the index of one that
// could not be written after it.
func (r *Replica) membershipAt(index uint64) (m membership, unwritten uint64) {
	r.logs.mu.Lock()
	for _, k := range r.logs.memberships.known {
		if k.index <= index {
			m = k
		}
	}
	unwritten = r.logs.memberships.unwritten
	r.logs.mu.Unlock()
	list, _ := r.snapshots.List()
	for _, meta := range list {
		if meta.ConfigurationIndex <= index && meta.ConfigurationIndex > m.index {
			m = membership{meta.ConfigurationIndex, meta.Configuration.Servers}
		}
	}
	return m, unwritten
}

// snapshotMembership is what a snapshot at index must hold, when this log knows it.
func (r *Replica) snapshotMembership(index, term uint64) (membership, bool) {
	var entry raft.Log
	if err := r.logs.GetLog(index, &entry); err != nil || entry.Term != term {
		return membership{}, false // from a leader, of what this log does not have
	}
	m, _ := r.membershipAt(index)
	return m, m.index > 0
}

// revocation is the step that takes Raft back from what it believes to what is written, nil when they are the same. Raft
// refuses it unless its newest configuration is the one at index unwritten.
func revocation(believed, written []raft.Server, unwritten uint64) configurationStep {
	if unwritten == 0 {
		return nil
	}
	for _, b := range believed {
		if find(written, b.ID) == nil {
			return removal(b.ID).after(unwritten)
		}
	}
	for _, w := range written {
		switch b := find(believed, w.ID); {
		case b == nil && w.Suffrage == raft.Voter, b != nil && b.Suffrage != raft.Voter && w.Suffrage == raft.Voter:
			return vote(w.ID, w.Address).after(unwritten)
		case b == nil:
			return addition(w.ID, w.Address).after(unwritten)
		case b.Suffrage == raft.Voter && w.Suffrage != raft.Voter:
			return demotion(w.ID).after(unwritten)
		case b.Address != w.Address:
			return addition(w.ID, w.Address).after(unwritten)
		}
	}
	return nil
}

func find(servers []raft.Server, id raft.ServerID) *raft.Server {
	if i := slices.IndexFunc(servers, func(s raft.Server) bool { return s.ID == id }); i >= 0 {
		return &servers[i]
	}
	return nil
}
