package health

import (
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// MaxOutput bounds what is kept of a probe's output, in bytes.
const MaxOutput = 1 << 10

// firstPause is the first of the pauses before the first success that double up to the start interval.
const firstPause = 100 * time.Millisecond

// State is how a task is, as far as it is known. The zero State is that of one that has not been asked.
type State struct {
	// Live: STARTING until the first success, UNHEALTHY for good. Where nobody asks for liveness it is what readiness was once.
	Live swarmpb.HealthState
	// Ready now; WasReady at some time.
	Ready, WasReady bool
	// Failures in a row, as they count.
	Failing, NotReadyFailing uint32
	// Output of the probe that changed the state, and when.
	Output string
	At     time.Time
	// Reason is why it is unhealthy, for a user; else empty.
	Reason string
}

// Status is the state as it is reported.
func (s State) Status() *swarmpb.HealthStatus {
	out := &swarmpb.HealthStatus{State: s.Live, NotReady: !s.Ready, Failing: s.Failing, NotReadyFailing: s.NotReadyFailing, Output: s.Output}
	if !s.At.IsZero() {
		out.At = s.At.UnixNano()
	}
	return out
}

// StateOf is what a task's status says of a former process's State. A task that is RUNNING was ready once.
func StateOf(h *swarmpb.HealthStatus, running bool) State {
	if h == nil {
		return State{}
	}
	s := State{
		Live: h.GetState(), Ready: !h.GetNotReady(), Failing: h.GetFailing(), NotReadyFailing: h.GetNotReadyFailing(), Output: h.GetOutput(),
		WasReady: running && h.GetState() >= swarmpb.HealthState_HEALTH_STATE_HEALTHY || !h.GetNotReady(),
	}
	if h.GetAt() != 0 {
		s.At = time.Unix(0, h.GetAt())
	}
	return s
}

// Answer is what came of a probe.
type Answer struct {
	OK bool
	// Text for a user: what it said, or what was wrong.
	Text string
}

// Machine is what follows from the answers to a task's checks. It is not safe for concurrent use.
type Machine struct {
	checks      Checks
	live, ready *tracker // the same for one check
	state       State
	untold      bool // Task.Untold, until it is told
}

// NewMachine begins with a container that started then, or, when from is not zero, goes on.
func NewMachine(checks Checks, started time.Time, from State) *Machine {
	m := &Machine{checks: checks, state: from}
	if m.state.Live == swarmpb.HealthState_HEALTH_STATE_UNSPECIFIED {
		m.state.Live = swarmpb.HealthState_HEALTH_STATE_STARTING
	}
	if checks.Live != nil {
		m.live = &tracker{check: checks.Live, counted: started.Add(checks.Live.StartPeriod), failing: from.Failing}
		m.live.succeeded = from.Live == swarmpb.HealthState_HEALTH_STATE_HEALTHY
	}
	m.ready = m.live
	if checks.Ready != checks.Live && checks.Ready != nil {
		m.ready = &tracker{check: checks.Ready, counted: started.Add(checks.Ready.StartPeriod), failing: from.NotReadyFailing, succeeded: from.WasReady}
	}
	return m
}

// State is the present one.
func (m *Machine) State() State { return m.state }

// Take takes an answer to one of the checks; changed tells whether there is something new to report: another state or, before the
// first success, a failure that counts, so that one can see what a task waits for.
func (m *Machine) Take(check *Check, a Answer, at time.Time) (next State, changed bool) {
	was := m.state
	if was.Live == swarmpb.HealthState_HEALTH_STATE_UNHEALTHY {
		return was, false
	}
	text := clean(a.Text)
	if check == m.checks.Ready {
		m.ready.take(a.OK, at)
		switch {
		case a.OK:
			m.state.Ready, m.state.WasReady = true, true
		case m.ready.failed():
			m.state.Ready = false
		}
		if m.untold && (a.OK || m.ready.failed()) {
			m.untold, changed = false, true
		}
		m.state.NotReadyFailing = m.ready.failing
	}
	if check == m.checks.Live {
		if m.live != m.ready {
			m.live.take(a.OK, at)
		}
		switch {
		case a.OK:
			m.state.Live = swarmpb.HealthState_HEALTH_STATE_HEALTHY
		case m.live.failed():
			m.state.Live, m.state.Ready = swarmpb.HealthState_HEALTH_STATE_UNHEALTHY, false
			m.state.Reason = "unhealthy: " + check.String() + ": " + strings.Join(strings.Fields(text), " ")
		}
		m.state.Failing = m.live.failing
	} else if m.checks.Live == nil && m.state.WasReady {
		m.state.Live = swarmpb.HealthState_HEALTH_STATE_HEALTHY
	}
	changed = changed || was.Live != m.state.Live || was.Ready != m.state.Ready || m.waitsStill(check, was)
	if changed {
		m.state.Output, m.state.At = text, at
	}
	return m.state, changed
}

// Fault notes why there is no answer. It changes nothing but what is shown.
func (m *Machine) Fault(fault error, at time.Time) State {
	m.state.Output, m.state.At = clean("it cannot be asked: "+fault.Error()), at
	return m.state
}

// waitsStill tells whether a check that has never succeeded has just failed once more, one of the first times.
func (m *Machine) waitsStill(check *Check, was State) bool {
	of, before := m.live, was.Failing
	if check == m.checks.Ready {
		of, before = m.ready, was.NotReadyFailing
	}
	return !of.succeeded && of.failing > before && of.failing <= check.Retries
}

// Pause is how long to wait before a check is asked again.
func (m *Machine) Pause(check *Check) time.Duration {
	of := m.live
	if check == m.checks.Ready {
		of = m.ready
	}
	switch {
	case of.succeeded:
		return check.Interval
	case check.Eager && of.answers < 16:
		return min(check.StartInterval, firstPause<<max(0, of.answers-1))
	}
	return check.StartInterval
}

// tracker counts for one check.
type tracker struct {
	check     *Check
	succeeded bool
	failing   uint32
	answers   int
	// counted is when a failure before the first success counted last: the next one does an interval later. At first it is
	// the end of the start period.
	counted time.Time
}

func (t *tracker) take(ok bool, at time.Time) {
	t.answers++
	switch {
	case ok:
		t.succeeded, t.failing = true, 0
	case t.succeeded:
		t.failing++
	case at.Sub(t.counted) >= t.check.Interval:
		t.failing++
		t.counted = at
	}
}

func (t *tracker) failed() bool { return t.failing >= t.check.Retries }

// clean makes a text fit for a status: valid, without what a terminal acts upon, and bounded.
func clean(text string) string {
	text = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return r
		case r == utf8.RuneError || unicode.IsControl(r):
			return '\uFFFD'
		}
		return r
	}, text)
	text = strings.TrimSpace(text)
	if len(text) > MaxOutput {
		text = strings.ToValidUTF8(text[:MaxOutput-3], "") + "..."
	}
	return text
}
