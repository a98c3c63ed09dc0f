package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const (
	// maxUnanswered beats are remembered; of later ones the answer counts for the last that is.
	maxUnanswered = 256
	// attendEvery is how often a session is looked at from outside.
	attendEvery = 250 * time.Millisecond
	// silentBeats: a manager that beats come to slowly has more time to answer.
	silentBeats = 3
)

// errLeave ends a session whose manager is one no more.
var errLeave = errors.New("it is no manager any more")

// silentError ends a session whose manager does not answer: it has no leader, or it hangs.
type silentError struct{ since time.Duration }

func (e *silentError) Error() string {
	return fmt.Sprintf("it has not answered for %s: it hangs, or has no contact with a leader", e.since.Round(100*time.Millisecond))
}

// beats of one session: which were sent when, and which are answered.
type beats struct {
	mu       sync.Mutex
	sequence uint64
	sent     []sentBeat // not answered, oldest first
	interval time.Duration
	began    time.Time
	// newest is when the newest answer came, or else the session began; count is of answers.
	newest time.Time
	count  int
}

type sentBeat struct {
	sequence uint64
	at       moment
}

func newBeats(interval time.Duration) *beats {
	now := time.Now()
	return &beats{interval: interval, began: now, newest: now}
}

// next numbers a beat that is about to be sent.
func (b *beats) next() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sequence++
	if len(b.sent) < maxUnanswered {
		b.sent = append(b.sent, sentBeat{b.sequence, thisMoment()})
	}
	return b.sequence
}

// answer takes the newest beat that the manager says it heard, and returns when that was sent; false when that is no
// news, or never was sent.
func (b *beats) answer(heard uint64) (m moment, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if heard > b.sequence {
		return moment{}, false
	}
	for len(b.sent) > 0 && b.sent[0].sequence <= heard {
		m, ok = b.sent[0].at, true
		b.sent = b.sent[1:]
	}
	if ok {
		b.newest = time.Now()
		b.count++
	}
	return m, ok
}

// silence is for how long no answer has come, and how long that may last at least.
func (b *beats) silence() (silent, atLeast time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return time.Since(b.newest), silentBeats * b.interval
}

// setInterval takes the interval that the manager asks for.
func (b *beats) setInterval(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.interval = d
}

func (b *beats) answers() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.count
}

// beatInterval is what the manager asks for, within reason.
func beatInterval(r *swarmpb.SessionResponse) time.Duration {
	if r.GetBeatInterval() <= 0 {
		return 500 * time.Millisecond
	}
	return min(max(time.Duration(r.GetBeatInterval()), 10*time.Millisecond), 10*time.Second)
}

// beat alone sends on the stream: beats, at once, at the interval and when a version was applied, and a changed description.
func (l *link) beat(ctx context.Context, stream sessionStream, b *beats, told *swarmpb.NodeDescription, interval <-chan time.Duration) error {
	ticker := time.NewTicker(<-interval)
	defer ticker.Stop()
	look := time.NewTicker(describeEvery)
	defer look.Stop()
	for {
		request, describe := &swarmpb.SessionRequest{}, false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case d := <-interval:
			ticker.Reset(d)
			b.setInterval(d)
			continue
		case <-ticker.C:
		case <-l.news:
		case <-look.C:
			describe = true
		case <-l.described:
			describe = true
		}
		if describe {
			now := l.describe(ctx)
			if proto.Equal(now, told) {
				continue
			}
			told = now
			request.Message = &swarmpb.SessionRequest_Description{Description: now}
		}
		if request.Message == nil {
			request.Message = &swarmpb.SessionRequest_Beat{Beat: &swarmpb.SessionBeat{AppliedVersion: l.applied.Load(), Sequence: b.next()}}
		}
		if err := stream.Send(request); err != nil {
			return err
		}
	}
}

// hear takes what the manager says of the managers, and its answers.
func (l *link) hear(stream sessionStream, address string, b *beats, interval chan<- time.Duration) error {
	asked := time.Duration(0)
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		l.heard(r)
		if m, ok := b.answer(r.GetHeardSequence()); ok {
			l.managers.answers(address, true)
			l.fleet.touched(m)
			if r.GetSentAt() != 0 {
				l.clock.measure(m.at, r.GetSentAt())
				l.issues.set(aboutClock, l.clock.problem())
			}
		}
		d := beatInterval(r)
		if d == asked {
			continue
		}
		select {
		case interval <- d:
			asked = d
		default: // one is on its way; the next message comes with another
		}
	}
}

// attend ends the session when its manager does not answer though it is one that does, or is a manager no more.
// listed: its own list had it when the session began.
func (l *link) attend(ctx context.Context, address string, listed bool, b *beats) error {
	ticker := time.NewTicker(attendEvery)
	defer ticker.Stop()
	var leave time.Time // zero = stay
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
		silent, atLeast := b.silence()
		if silent > max(l.cfg.Limits.Answer, atLeast) && l.managers.expects(address) {
			return &silentError{silent}
		}
		// An address that the list never had is another name of a manager, or the way through some translation.
		switch is := l.managers.listed(address); {
		case is:
			listed, leave = true, time.Time{}
		case listed && leave.IsZero():
			leave = time.Now().Add(time.Duration(l.managers.jitter() * float64(l.cfg.Limits.Leave)))
		case listed && !time.Now().Before(leave):
			return errLeave
		}
	}
}
