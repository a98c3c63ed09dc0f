package wire

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// staleHeader goes both ways: a client's wish for an answer from the manager's own copy, and a manager's word that
// its answer is one, with how long it has had no contact with a leader.
const staleHeader = "swarmd-stale"

// staleWish and staleUnknown are values of the header; else it is a duration, as Go writes it.
const (
	staleWish    = "wanted"
	staleUnknown = "unknown"
)

// StaleRead says how old an answer may be that was read without asking the leader.
type StaleRead struct {
	// Leaderless is how long the manager that answered had had no contact with a leader; 0 = it has contact.
	Leaderless time.Duration
	// Known is false for a manager that has had no contact with a leader since it started.
	Known bool
}

// WithStale asks the server to answer from its own copy, without a question to the leader.
func WithStale(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, staleHeader, staleWish)
}

// Stale tells a handler whether its caller asked for that.
func Stale(ctx context.Context) bool {
	values := metadata.ValueFromIncomingContext(ctx, staleHeader)
	return len(values) > 0 && values[len(values)-1] == staleWish
}

// MarkStale says in the answer's header that it may be out of date. It is called before the first message; of a
// caller within the process, who has no header, it is lost.
func MarkStale(ctx context.Context, read StaleRead) {
	value := staleUnknown
	if read.Known {
		value = max(read.Leaderless, 0).String()
	}
	_ = grpc.SetHeader(ctx, metadata.Pairs(staleHeader, value))
}

// StaleFrom reads the mark from an answer's header; false: the answer holds all that was written before the call.
func StaleFrom(header metadata.MD) (StaleRead, bool) {
	values := header.Get(staleHeader)
	if len(values) == 0 {
		return StaleRead{}, false
	}
	age, err := time.ParseDuration(values[len(values)-1])
	if err != nil || age < 0 {
		return StaleRead{}, true
	}
	return StaleRead{Leaderless: age, Known: true}, true
}
