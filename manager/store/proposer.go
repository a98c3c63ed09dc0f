package store

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

var (
	// ErrStaleTerm: the proposal was decided in another term; nothing was written.
	ErrStaleTerm = errors.New("proposal was decided in another term")
	// ErrInvalid: the proposal is malformed or holds an operation that this version does not know; nothing was written.
	ErrInvalid = errors.New("proposal is not valid")
)

// ConflictError says that a guard did not hold, or that a name, address or ID was taken. Nothing was written:
// read again and decide anew.
type ConflictError struct {
	// Key is the row that conflicted.
	Key *swarmpb.RowKey
	// Message is for the user: what is taken, and by whom.
	Message string
}

func (e *ConflictError) Error() string {
	return "conflict: " + e.Message
}

// ResultError is the error that a result stands for; nil when it was applied.
func ResultError(result *swarmpb.Result) error {
	switch result.GetOutcome() {
	case swarmpb.Outcome_OUTCOME_APPLIED:
		return nil
	case swarmpb.Outcome_OUTCOME_CONFLICT:
		return &ConflictError{Key: result.GetConflict(), Message: result.GetMessage()}
	case swarmpb.Outcome_OUTCOME_STALE_TERM:
		return fmt.Errorf("%w: %s", ErrStaleTerm, result.GetMessage())
	default:
		return fmt.Errorf("%w: %s", ErrInvalid, result.GetMessage())
	}
}

// Proposer writes to the replicated store.
type Proposer interface {
	// Propose returns once the proposal has been applied and can be seen in a View. The error is nil only when
	// it was applied; else a *ConflictError, ErrStaleTerm or ErrInvalid (nothing was written), or an error of
	// the way there (it may have been written).
	Propose(ctx context.Context, proposal *swarmpb.Proposal) (*swarmpb.Result, error)
}

// Leader is a Proposer for as long as one term lasts.
type Leader interface {
	Proposer
	// Term fences what the leader's loops write.
	Term() uint64
}

// LocalProposer applies proposals at once, without replication: for tests and benchmarks. It is a Leader, of term 1.
type LocalProposer struct {
	store *Store
	mu    sync.Mutex
}

// localTerm is the only term of a LocalProposer.
const localTerm = 1

// NewLocalProposer makes a proposer that is the store's only writer.
func NewLocalProposer(store *Store) *LocalProposer {
	return &LocalProposer{store: store}
}

// Term is always 1.
func (p *LocalProposer) Term() uint64 { return localTerm }

// Propose applies a copy of the proposal with the next index.
func (p *LocalProposer) Propose(ctx context.Context, proposal *swarmpb.Proposal) (*swarmpb.Result, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("propose: %w", err)
	}
	// The store takes over what it is given, and the caller keeps its messages: the copy goes through the wire
	// format, as it would through the log.
	data, err := proto.Marshal(&swarmpb.Entry{Proposals: []*swarmpb.Proposal{proposal}})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	entry := new(swarmpb.Entry)
	if err := proto.Unmarshal(data, entry); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	p.mu.Lock()
	result := p.store.Apply(p.store.View().Index()+1, localTerm, entry)[0]
	p.mu.Unlock()
	return result, ResultError(result)
}
