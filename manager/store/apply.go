package store

import (
	"fmt"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// refusal is why a proposal is not applied.
type refusal struct {
	outcome swarmpb.Outcome
	key     *swarmpb.RowKey
	message string
	// alarm is the kind of alarm to raise, empty for none, and object what it is of.
	alarm  string
	object string
}

func conflict(key *swarmpb.RowKey, format string, args ...any) *refusal {
	return &refusal{outcome: swarmpb.Outcome_OUTCOME_CONFLICT, key: key, message: fmt.Sprintf(format, args...)}
}

func invalid(format string, args ...any) *refusal {
	return &refusal{outcome: swarmpb.Outcome_OUTCOME_INVALID, message: fmt.Sprintf(format, args...)}
}

// Apply makes the version of a log entry, publishes it and answers each of its proposals in order. Proposals are
// judged one by one, each on top of those before it, and applied whole or not at all. index must be higher than
// the store's. The store takes over entry and all that it holds.
func (s *Store) Apply(index, term uint64, entry *swarmpb.Entry) []*swarmpb.Result {
	s.mu.Lock()
	defer s.mu.Unlock()
	current := s.View()
	results := make([]*swarmpb.Result, len(entry.GetProposals()))
	if index <= current.index {
		for i := range results {
			results[i] = &swarmpb.Result{
				Outcome: swarmpb.Outcome_OUTCOME_INVALID,
				Index:   current.index,
				Message: fmt.Sprintf("apply entry %d: the store is at index %d already", index, current.index),
			}
		}
		return results
	}
	writes := 0
	for _, proposal := range entry.GetProposals() {
		writes += min(len(proposal.GetWrites()), MaxWrites)
	}
	t := &tx{View: current.fork(), strings: &s.strings, changes: make([]Change, 0, writes)}
	t.index, t.term = index, term
	for i, proposal := range entry.GetProposals() {
		results[i] = t.judge(proposal)
	}
	s.current.Store(t.View)
	s.feed.publish(t.View, t.changes)
	return results
}

// judge applies one proposal, or leaves no trace of it but an alarm.
func (t *tx) judge(proposal *swarmpb.Proposal) *swarmpb.Result {
	t.now = proposal.GetNow()
	t.loose = t.loose[:0]
	if id := proposal.GetRequestId(); id != "" && len(id) <= MaxKeyLength {
		if known, ok := t.requests.Get(id); ok {
			return known.result
		}
	}
	mark := len(t.changes)
	refused := t.check(proposal)
	if refused == nil {
		refused = t.run(proposal)
	}
	if refused != nil {
		t.undo(mark)
		if refused.alarm != "" {
			t.raise(refused.alarm, refused.object, refused.message)
		}
		return &swarmpb.Result{Outcome: refused.outcome, Index: t.index, Conflict: refused.key, Message: refused.message}
	}
	result := &swarmpb.Result{Outcome: swarmpb.Outcome_OUTCOME_APPLIED, Index: t.index}
	t.remember(proposal.GetRequestId(), result)
	return result
}

// check judges a proposal before anything is written.
func (t *tx) check(proposal *swarmpb.Proposal) *refusal {
	if proposal == nil {
		return invalid("the proposal is empty")
	}
	if n := len(proposal.Writes); n > MaxWrites {
		return invalid("the proposal has %d writes, at most %d are taken", n, MaxWrites)
	}
	if n := len(proposal.Guards); n > MaxGuards {
		return invalid("the proposal has %d guards, at most %d are taken", n, MaxGuards)
	}
	if n := len(proposal.RequestId); n > MaxKeyLength {
		return invalid("the request ID has %d bytes, at most %d are taken", n, MaxKeyLength)
	}
	if proposal.Term != 0 && proposal.Term != t.term {
		return &refusal{
			outcome: swarmpb.Outcome_OUTCOME_STALE_TERM,
			message: fmt.Sprintf("decided in term %d, the term is %d", proposal.Term, t.term),
		}
	}
	for _, guard := range proposal.Guards {
		if refused := t.guard(guard); refused != nil {
			return refused
		}
	}
	return nil
}

func (t *tx) guard(guard *swarmpb.Guard) *refusal {
	key := guard.GetKey()
	_, version, known := t.get(key.GetTable(), keyOf(key))
	if !known {
		return &refusal{
			outcome: swarmpb.Outcome_OUTCOME_INVALID,
			message: fmt.Sprintf("guard of table %d: this version does not know it", key.GetTable()),
			alarm:   AlarmUnknownOperation,
		}
	}
	switch want := guard.GetVersion(); {
	case version == want:
		return nil
	case want == 0:
		return conflict(key, "%s exists already", key.Describe())
	case version == 0:
		return conflict(key, "%s is gone", key.Describe())
	default:
		return conflict(key, "%s has version %d, not %d: it was changed meanwhile", key.Describe(), version, want)
	}
}

// run makes the writes in order.
func (t *tx) run(proposal *swarmpb.Proposal) *refusal {
	mark := len(t.changes)
	for _, write := range proposal.Writes {
		if refused := t.apply(write); refused != nil {
			return refused
		}
	}
	for _, change := range t.changes[mark:] {
		if refused := t.checkReferences(change); refused != nil {
			return refused
		}
	}
	t.collect()
	return nil
}

// checkReferences refuses a row that refers to a template or network which is not there once the proposal has been run:
// the writes may come in any order.
func (t *tx) checkReferences(change Change) *refusal {
	switch row := change.New.(type) {
	case *swarmpb.Service:
		for _, version := range []uint64{row.TemplateVersion, row.PreviousTemplateVersion} {
			if version != 0 && t.Service(row.Id) == row && t.Template(row.Id, version) == nil {
				return invalid("service %s refers to template %d, which is not there: put it in the same proposal", row.Id, version)
			}
		}
		if t.Service(row.Id) == row {
			return t.checkNetworks(row)
		}
	case *swarmpb.ServiceProgress:
		for _, version := range rolloutTemplates(row) {
			if version != 0 && t.ServiceProgress(row.ServiceId) == row && t.Template(row.ServiceId, version) == nil {
				return gone(swarmpb.TemplateRowKey(row.ServiceId, version))
			}
		}
	case *swarmpb.ServiceRevision:
		if t.ServiceRevision(row.ServiceId, row.Revision) == row && t.Template(row.ServiceId, row.TemplateVersion) == nil {
			return gone(swarmpb.TemplateRowKey(row.ServiceId, row.TemplateVersion))
		}
	}
	return nil
}

// collect deletes the templates that nothing refers to any more.
func (t *tx) collect() {
	for _, candidate := range t.loose {
		if _, used := t.references.Get(candidate); used {
			continue
		}
		if template := t.Template(candidate.service, candidate.version); template != nil {
			t.write(swarmpb.Table_TABLE_TEMPLATE, Key{ID: candidate.service, Number: candidate.version}, template, nil)
		}
	}
}

// remember keeps the answer to a user's write. A refused one left no trace, so that trying it again is safe and it
// is not kept.
func (t *tx) remember(id string, result *swarmpb.Result) {
	if id == "" {
		return
	}
	t.requests.Set(id, request{t.nextRequest, result})
	t.requestOrder.Set(t.nextRequest, id)
	t.nextRequest++
	for t.requests.Len() > MaxRequests {
		_, oldest, _ := t.requestOrder.PopMin()
		t.requests.Delete(oldest)
	}
}

func keyOf(key *swarmpb.RowKey) Key {
	return Key{ID: key.GetId(), Number: key.GetNumber(), Name: key.GetName()}
}
