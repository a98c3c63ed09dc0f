package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

const (
	// defaultMonitor is how long replicas must stay up before a service counts as settled.
	defaultMonitor = 5 * time.Second
	// hopeless is how often one replica may fail while somebody waits, idle how long one may have no attempt
	// under way, or no node, and troubled how long its attempt may carry an error, before the wait ends with one.
	hopeless = 3
	idle     = 10 * time.Second
	troubled = 15 * time.Second
	// redraw is how often the picture is looked at when nothing changes.
	redraw = 200 * time.Millisecond
)

// goal is what a command waits for.
type goal struct {
	service string // ID
	name    string // as the user knows it; may be empty
	// removed: until the service is gone, instead of until it has settled.
	removed bool
	// revision is the service's that the command has made; 0: none, or not known.
	revision uint64
	// told: it is about what the user told the rollout; paused: until that stands still; back: it goes back, which is no failure.
	told, paused, back bool
}

// await shows progress until the goal is reached, or says why it cannot be.
func (a *app) await(ctx context.Context, c *client, w waiting, g goal) error {
	if w.detach {
		return nil
	}
	p := newPicture(g)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if w.timeout > 0 {
		// Not the call's deadline: the server keeps that too, and its word may come first.
		timer := time.AfterFunc(w.timeout, func() { cancel(context.DeadlineExceeded) })
		defer timer.Stop()
	}
	s := &screen{out: a.out, terminal: a.terminal, width: a.width, height: a.height, quiet: w.quiet}
	messages, ended := a.watchService(ctx, c, g.service)
	tick, stop := a.ticks(redraw)
	defer stop()
	for {
		select {
		case m := <-messages:
			if m.again {
				clear(p.tasks) // the whole state follows
			}
			p.take(m.WatchServiceResponse)
		case err := <-ended:
			return p.endOfWatch(ctx, w, err)
		case <-tick:
		}
		now := a.now()
		v := p.judge(now)
		s.draw(v, now)
		if v.done && v.err == nil && v.note != "" {
			return a.say("%s: %s", p.name(), v.note)
		}
		if v.done || v.err != nil {
			return v.err
		}
	}
}

// endOfWatch says what it means that no more messages come.
func (p *picture) endOfWatch(ctx context.Context, w waiting, err error) error {
	hint := "see `swarmctl service ps " + p.name() + "`"
	if p.goal.removed {
		hint = "see `swarmctl service ls`"
	}
	switch {
	case errors.Is(context.Cause(ctx), context.DeadlineExceeded):
		return timedOut(fmt.Errorf("service %s has not settled within %s; the cluster goes on, %s", p.name(), w.timeout, hint))
	case ctx.Err() != nil:
		return fmt.Errorf("%w; the cluster goes on, %s", errInterrupted, hint)
	case errors.Is(err, wire.ErrNotFound) && p.goal.removed:
		return nil
	case errors.Is(err, wire.ErrNotFound):
		return fmt.Errorf("service %s was removed meanwhile", p.name())
	}
	return fmt.Errorf("watch service %s: %w", p.name(), err)
}

// watched is a message of a watch; again: the first one of a stream that was opened anew.
type watched struct {
	*swarmpb.WatchServiceResponse
	again bool
}

// watchService reads the stream in the background until ctx ends or the stream does. One that is lost with its manager
// is opened again for as long as a call is tried again.
func (a *app) watchService(ctx context.Context, c *client, service string) (<-chan watched, <-chan error) {
	messages, ended := make(chan watched), make(chan error, 1)
	go func() {
		begun := false
		for lost := time.Now(); ; {
			heard := false
			err := follow(ctx, c, service, func(m *swarmpb.WatchServiceResponse, first bool) error {
				select {
				case messages <- watched{m, first && begun}:
				case <-ctx.Done():
					return ctx.Err()
				}
				begun, heard = true, true
				return nil
			})
			if heard {
				lost = time.Now()
			}
			if !errors.Is(err, wire.ErrUnavailable) || !sleep(ctx, a.patience-time.Since(lost)) {
				ended <- err
				return
			}
		}
	}()
	return messages, ended
}

// follow hands over the messages of one stream; its error is never nil.
func follow(ctx context.Context, c *client, service string, take func(m *swarmpb.WatchServiceResponse, first bool) error) error {
	stream, err := c.WatchService(ctx, &swarmpb.WatchServiceRequest{Service: service})
	for first := true; err == nil; first = false {
		var m *swarmpb.WatchServiceResponse
		if m, err = stream.Recv(); err == nil {
			err = take(m, first)
		}
	}
	if errors.Is(err, io.EOF) { // the server ends the stream when the service is gone
		return wire.ErrNotFound
	}
	return err
}

// picture is what is known of a service that somebody waits for. It judges by that and the time it is given.
type picture struct {
	goal    goal
	whole   bool // the first full state has arrived
	gone    bool
	service *swarmpb.ServiceInfo
	tasks   map[string]*swarmpb.TaskInfo
	// failures counts the attempts of each replica that failed since the wait began; counted holds their IDs.
	failures map[string]int
	counted  map[string]bool
	// former is when the update started whose end was known before the wait began: it is history.
	former int64
	// template and revision are the service's when the wait began.
	template, revision uint64
	// good is since when everything is as it should be, stuck what has kept a replica from that for a while.
	good  time.Time
	stuck map[string]plight
}

// plight is what keeps an attempt from going on, whatever the words for it are at the moment.
type plight struct {
	task     string
	patience time.Duration // after which the wait ends
	since    time.Time
}

func newPicture(g goal) *picture {
	return &picture{goal: g, tasks: map[string]*swarmpb.TaskInfo{}, failures: map[string]int{}, counted: map[string]bool{}, stuck: map[string]plight{}}
}

// name is the service's, as well as it is known.
func (p *picture) name() string {
	return cmp.Or(p.service.GetService().GetSpec().GetName(), p.goal.name, p.goal.service)
}

func (p *picture) take(m *swarmpb.WatchServiceResponse) {
	first := !p.whole
	for _, t := range m.GetTasks() {
		id := t.GetTask().GetId()
		p.tasks[id] = t
		if failed(t) && !p.counted[id] {
			p.counted[id] = true
			if !first { // what failed before the wait is history
				p.failures[t.GetName()]++
			}
		}
	}
	for _, id := range m.GetRemoved() {
		delete(p.tasks, id)
	}
	if m.GetMore() {
		return
	}
	p.whole = true
	if m.Service == nil {
		p.gone = true
		return
	}
	p.service = m.Service
	u := m.GetService().GetProgress().GetUpdate()
	ours := p.goal.told || p.goal.paused || p.goal.revision != 0 && u.GetRevision() == p.goal.revision
	// Who lets a way back go on, or stops it, does not take its end for a failure.
	p.goal.back = p.goal.back || first && p.goal.told && u.Underway() && u.GetState() >= swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_STARTED
	moves := u.Underway() && !u.Paused()
	switch {
	case first && !ours && u.GetState() != swarmpb.UpdateState_UPDATE_STATE_UPDATING:
		p.former = u.GetStartedAt()
	case moves && u.GetStartedAt() == p.former:
		p.former = 0 // it was paused, and goes on
	}
}

func failed(t *swarmpb.TaskInfo) bool {
	return t.GetState() == swarmpb.TaskState_TASK_STATE_FAILED || t.GetState() == swarmpb.TaskState_TASK_STATE_REJECTED
}

// replica is the line of one replica.
type replica struct {
	name, text string
	// trouble is what went wrong with it; empty: nothing.
	trouble string
	// prepares: its image is being pulled, and text says how far that is.
	prepares bool
}

// verdict is what the picture comes to at a moment.
type verdict struct {
	done     bool
	err      error
	replicas []replica
	// summary is one line for all; countdown changes with time alone.
	summary, countdown string
	// Of a rollout: where it is, and the versions that have replicas, each on a line and all on one.
	rolling            bool
	headline, setsText string
	sets               []string
	// note is said at the end, where that is not all that there is to it.
	note string
}

func (p *picture) judge(now time.Time) verdict {
	switch {
	case p.gone && p.goal.removed:
		return verdict{done: true, summary: "removed"}
	case p.gone:
		return verdict{err: fmt.Errorf("service %s was removed meanwhile", p.name())}
	case !p.whole:
		return verdict{}
	case p.goal.removed:
		return p.removal()
	}
	return p.settling(now)
}

func (p *picture) removal() verdict {
	left := 0
	for _, t := range p.tasks {
		if !t.GetState().Ended() {
			left++
		}
	}
	if left == 0 {
		return verdict{summary: "all tasks have stopped"}
	}
	return verdict{summary: count(left, "task") + " to stop"}
}

// settling judges a service that was created or changed.
func (p *picture) settling(now time.Time) verdict {
	s, name := p.service, p.name()
	if s.GetService().GetRemoving() {
		return verdict{err: fmt.Errorf("service %s is being removed", name)}
	}
	if s.GetService().GetRevision() < p.goal.revision {
		return verdict{} // from before the change
	}
	if err := p.superseded(); err != nil {
		return verdict{err: err}
	}
	if s.GetService().GetSpec().IsJob() {
		return p.job(now)
	}
	u := p.rollout()
	if p.unobeyed(u) {
		return verdict{summary: "waiting for the leader"}
	}
	v := verdict{}
	wanted, surplus := p.byReplica()
	settled := 0
	var trouble error // of a live attempt
	for _, attempts := range wanted {
		ok, hopeless, live := p.attempt(attempts, now)
		if ok {
			settled++
		}
		v.replicas = append(v.replicas, p.describe(attempts, ok))
		switch {
		case hopeless == "":
		case live && trouble == nil:
			trouble = fmt.Errorf("%s: %s; the cluster goes on trying, see `swarmctl service ps %s`", attempts.newest.GetName(), hopeless, name)
		case !live && v.err == nil:
			v.err = fmt.Errorf("%s: %s; see `swarmctl service %s %s`", attempts.newest.GetName(), hopeless, whereToLook(attempts.newest), name)
		}
	}
	v.summary = fmt.Sprintf("%d of %s running", settled, count(s.GetDesired(), "replica"))
	if surplus > 0 {
		v.summary += fmt.Sprintf(", %d to stop", surplus)
	}
	last, template := s.GetProgress().GetUpdate(), s.GetService().GetTemplateVersion()
	if u == nil && p.goal.revision != 0 && template >= p.goal.revision && last.GetTemplateVersion() != template && last.GetFailedTemplateVersion() != template && settled < len(wanted) {
		v.summary = "the rollout has not begun"
	}
	if p.judgeRollout(u, &v, now) {
		return v
	}
	if v.rolling && settled == len(wanted) && p.forPerson(u, &v, now) {
		return v
	}
	if v.rolling && !waitsForPerson(u) {
		v.err = nil // the update's own rules decide, and its state tells
	}
	if v.err == nil {
		v.err = trouble // which an update waits for too
	}
	if v.rolling || surplus > 0 || uint64(settled) != s.GetDesired() || len(wanted) != settled {
		p.good = time.Time{}
		return v
	}
	if ended(u) && (p.goal.revision != 0 || p.goal.told || p.goal.back) {
		v.summary += "; settled" // the rollout has watched them for that time
		v.done = true
		return v
	}
	return p.stable(v, now)
}

// ended tells whether an update has come to its end, also where that is the way back.
func ended(u *swarmpb.UpdateStatus) bool {
	return u.GetState() == swarmpb.UpdateState_UPDATE_STATE_COMPLETED || u.GetState() == swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_COMPLETED
}

// stable lets the monitor time pass before a service that is as it should be has settled.
func (p *picture) stable(v verdict, now time.Time) verdict {
	monitor := defaultMonitor
	if m := p.service.GetService().GetSpec().GetUpdate().GetMonitor(); m != nil {
		monitor = m.AsDuration()
	}
	if p.good.IsZero() {
		p.good = now
	}
	if passed := now.Sub(p.good); passed < monitor {
		v.countdown = fmt.Sprintf("; stable for %s of %s", passed.Truncate(time.Second), monitor)
		return v
	}
	v.summary += "; settled"
	v.done = true
	return v
}

// attempts are a replica's.
type attempts struct {
	newest *swarmpb.TaskInfo // of those that are to run
	failed *swarmpb.TaskInfo // the latest that failed; nil: none
}

// reason is why the latest failed.
func (r attempts) reason() string {
	return cmp.Or(r.failed.GetError(), r.failed.GetMessage(), "no reason is known")
}

// byReplica is the replicas that some task is meant to be, in order, and how many other tasks still run.
func (p *picture) byReplica() (wanted []attempts, surplus int) {
	later := func(t, than *swarmpb.TaskInfo) bool {
		return than == nil || t.GetTask().GetAttempt() > than.GetTask().GetAttempt()
	}
	all := map[string]*attempts{}
	for _, t := range p.tasks {
		r := all[t.GetName()]
		if r == nil {
			r = &attempts{}
			all[t.GetName()] = r
		}
		// Beyond COMPLETE somebody decided that it should go.
		toRun := t.GetTask().GetDesiredState() <= swarmpb.TaskState_TASK_STATE_COMPLETE
		if toRun && later(t, r.newest) {
			r.newest = t
		}
		if !toRun && !t.GetState().Ended() {
			surplus++
		}
		if failed(t) && later(t, r.failed) {
			r.failed = t
		}
	}
	for _, r := range all {
		if r.newest != nil {
			wanted = append(wanted, *r)
		}
	}
	slices.SortFunc(wanted, func(x, y attempts) int {
		return cmp.Or(cmp.Compare(x.newest.GetTask().GetSlot(), y.newest.GetTask().GetSlot()), cmp.Compare(x.newest.GetName(), y.newest.GetName()))
	})
	return wanted, surplus
}

// attempt tells whether a replica is as it should be, and if not, why there is no hope for it; live says that the
// attempt goes on all the same.
func (p *picture) attempt(r attempts, now time.Time) (ok bool, hopelessness string, live bool) {
	t, name := r.newest, r.newest.GetName()
	current := p.current(p.rollout(), t.GetTask().GetTemplateVersion())
	up := t.GetState() == swarmpb.TaskState_TASK_STATE_RUNNING && !t.GetStatus().GetHealth().GetNotReady()
	if current && (up || t.GetState() == swarmpb.TaskState_TASK_STATE_COMPLETE) {
		delete(p.stuck, name)
		return true, "", true
	}
	if n := p.failures[name]; n >= hopeless {
		return false, fmt.Sprintf("failed %s: %s", count(n, "time"), r.reason()), false
	}
	unplaceable := homeless(t)
	live = !t.GetState().Ended() && !unplaceable
	patience := idle
	if live {
		patience = troubled
	}
	switch {
	case live && t.GetError() == "":
		delete(p.stuck, name)
		return false, "", true
	case p.lasts(name, plight{t.GetTask().GetId(), patience, now}) < patience:
		return false, "", live
	case live:
		return false, t.GetError(), true
	case unplaceable:
		return false, t.GetPlacement().GetMessage() + "; it starts as soon as a node suits", false
	}
	return false, fmt.Sprintf("ended and is not started again (%s)", cmp.Or(t.GetError(), t.GetMessage(), t.GetState().Name())), false
}

// lasts is how long a replica has been in a plight.
func (p *picture) lasts(name string, now plight) time.Duration {
	if was, ok := p.stuck[name]; !ok || was.task != now.task || was.patience != now.patience {
		p.stuck[name] = now
	}
	return now.since.Sub(p.stuck[name].since)
}

// describe is a replica's line.
func (p *picture) describe(of attempts, ok bool) replica {
	t := of.newest
	r := replica{name: t.GetName(), text: t.GetState().Name()}
	if t.GetNodeHostname() != "" {
		r.text += " on " + t.GetNodeHostname()
	}
	if ok {
		return r
	}
	if h := t.GetStatus().GetHealth(); h.GetNotReady() && !t.GetState().Ended() {
		r.text += ", " + healthWord(h)
		if said := strings.TrimSpace(h.GetOutput()); said != "" {
			r.text += ": " + said
		}
		r.trouble = r.text
		return r
	}
	why := waitingWhy(t)
	n := p.failures[t.GetName()]
	switch {
	case why != "":
		r.text += ": " + why
		r.trouble = r.text
	case n > 0:
		r.trouble = fmt.Sprintf("failed %s: %s", count(n, "time"), of.reason())
		r.text += ", " + r.trouble
	case t.GetMessage() != "":
		r.text += ": " + t.GetMessage()
		r.prepares = t.GetState() == swarmpb.TaskState_TASK_STATE_PREPARING
	}
	return r
}
