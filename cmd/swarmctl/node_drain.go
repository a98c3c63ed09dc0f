package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

const (
	// drainLook is how often a drain is looked at while somebody waits.
	drainLook = 500 * time.Millisecond
	// drainBlind is how long no manager may answer before the wait ends.
	drainBlind = time.Minute
	drained    = swarmpb.NodeAvailability_NODE_AVAILABILITY_DRAIN
)

// drainText is how far a drain is.
func drainText(d *swarmpb.NodeDrain) string {
	text := count(d.GetLeft(), "task") + " left"
	if d.GetMoving() > 0 {
		text += fmt.Sprintf(", %d moving", d.GetMoving())
	}
	return text
}

// drainWait is a node that somebody waits for to be empty.
type drainWait struct {
	id, name string
	waiting
}

// judge says how far the node is.
func (w drainWait) judge(n *swarmpb.NodeInfo) verdict {
	drain := n.GetDrain()
	if drain == nil { // a manager that does not tell
		drain = &swarmpb.NodeDrain{Left: n.GetTasks()}
	}
	v := verdict{summary: w.name + ": " + drainText(drain)}
	for _, line := range drain.GetWaits() {
		service, text, ok := strings.Cut(line, ": ")
		if !ok {
			service, text = "", line
		}
		v.replicas = append(v.replicas, replica{name: service, text: text, trouble: text})
	}
	switch {
	case n.GetNode().GetSpec().GetAvailability() != drained:
		v.err = fmt.Errorf("node %s: somebody else made it %s meanwhile; %s", w.name, availability(n), drainText(drain))
	case drain.GetLeft() == 0:
		v = verdict{done: true, summary: w.name + ": drained, no task is left"}
	case n.GetStatus().GetState() == swarmpb.NodeState_NODE_STATE_DOWN:
		v.done, v.note = true, "it is down: its tasks start elsewhere, and what it may run still ends when it is back"
	}
	return v
}

// thin leaves out what a service waits for where that was told a moment ago: the numbers in it change all the time.
func thin(waits []replica, told map[string]time.Time, now time.Time) {
	for i, r := range waits {
		if at, ok := told[r.name]; ok && now.Sub(at) < sayEvery {
			waits[i].trouble = ""
		} else {
			told[r.name] = now
		}
	}
}

// awaitDrain shows progress until nothing is left on the node, or says why it cannot be waited for.
func (a *app) awaitDrain(ctx context.Context, c *client, w drainWait, n *swarmpb.NodeInfo) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if w.timeout > 0 {
		timer := time.AfterFunc(w.timeout, func() { cancel(context.DeadlineExceeded) })
		defer timer.Stop()
	}
	tick, stop := a.ticks(drainLook)
	defer stop()
	s := &screen{out: a.out, terminal: a.terminal, width: a.width, height: a.height, quiet: w.quiet}
	told := map[string]time.Time{}
	for blind := (time.Time{}); ; {
		now := a.now()
		v := w.judge(n)
		if !a.terminal {
			thin(v.replicas, told, now)
		}
		s.draw(v, now)
		if v.done && v.note != "" {
			return a.say("%s: %s", w.name, v.note)
		}
		if v.done || v.err != nil {
			return v.err
		}
		for looked := false; !looked; {
			select {
			case <-tick:
			case <-ctx.Done():
				return w.interrupted(ctx, v)
			}
			r, err := c.GetNode(ctx, &swarmpb.GetNodeRequest{Node: w.id})
			switch {
			case err == nil:
				n, looked, blind = r.GetNode(), true, time.Time{}
			case ctx.Err() != nil:
				return w.interrupted(ctx, v)
			case errors.Is(err, wire.ErrNotFound):
				return fmt.Errorf("node %s was removed from the cluster meanwhile", w.name)
			case !errors.Is(err, wire.ErrUnavailable):
				return fmt.Errorf("node %s: %w", w.name, err)
			case blind.IsZero(): // a leader that goes is not the end of it
				blind = a.now()
			case a.now().Sub(blind) >= drainBlind:
				return fmt.Errorf("node %s: %w; the drain goes on, see `swarmctl node ls`", w.name, err)
			}
		}
	}
}

// interrupted is the end of a wait that did not see the end.
func (w drainWait) interrupted(ctx context.Context, v verdict) error {
	hint := "the drain goes on, see `swarmctl node inspect --pretty " + w.name + "`"
	if !errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		return fmt.Errorf("%w; %s", errInterrupted, hint)
	}
	text := fmt.Sprintf("node %s is not drained within %s: %s", w.name, w.timeout, strings.TrimPrefix(v.summary, w.name+": "))
	for _, r := range v.replicas {
		text += "\n  " + strings.TrimPrefix(r.name+": "+r.text, ": ")
	}
	return timedOut(errors.New(text + "\n" + hint))
}

// nodeName is what users call a node.
func nodeName(n *swarmpb.NodeInfo) string {
	return cmp.Or(n.GetStatus().GetDescription().GetHostname(), n.GetNode().GetId())
}
