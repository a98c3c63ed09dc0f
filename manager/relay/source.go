package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

const (
	// retryMin and retryMax bound the pause before a node that did not answer is asked again.
	retryMin, retryMax = 500 * time.Millisecond, 5 * time.Second
	// triesOnce is how often it is asked when nobody follows.
	triesOnce = 2
	// maxNotices bounds what is told of one frame.
	maxNotices = 8
	// recordHead is what stands before a record's text, which may be empty: time, stream and tag; stampLen is the time's part.
	recordHead, stampLen = 40, 30
)

// errSaid is what a node answered with instead of a log.
type errSaid struct{ text string }

func (e *errSaid) Error() string { return e.text }

// run reads the log of a task to its end, and tells the user when it cannot. An error is the user's: it has gone.
func (c *call) run(ctx context.Context, src *source, emit func(context.Context, *swarmpb.LogFrame) error) error {
	if c.server.cfg.Store().View().Node(src.info.GetNodeId()) == nil {
		return c.removed(src)
	}
	query := &swarmpb.LogQuery{TaskId: src.info.GetTaskId(), Follow: c.req.GetFollow(), Tail: c.req.Tail, Since: c.req.GetSince()}
	pause := retryMin
	for try := 1; ; try++ {
		before := query.GetAfter()
		err := c.once(ctx, src, query, emit)
		var said *errSaid
		var user *userError
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return nil // somebody else says why
		case errors.As(err, &user):
			return user.err
		case errors.As(err, &said):
			if !src.ran && !mayHaveWritten(c.server.cfg.Store().View().Status(src.info.GetTaskId()).GetState()) {
				return nil // it never came to write anything
			}
			return c.notice(false, fmt.Sprintf("%s on %s: %s", src.info.GetTaskName(), src.info.GetNodeHostname(), said.text))
		}
		if c.server.cfg.Store().View().Node(src.info.GetNodeId()) == nil {
			return c.removed(src)
		}
		if query.GetAfter() != before {
			pause = retryMin
			try = 1
		}
		if !c.req.GetFollow() && try >= triesOnce {
			return c.lost(src, err, "its logs are missing")
		}
		if c.req.GetFollow() {
			if err := c.lost(src, err, "its logs are missing from here on"); err != nil {
				return err
			}
			if c.server.cfg.Store().View().Task(src.info.GetTaskId()) == nil {
				return nil // its logs go with it
			}
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
		pause = min(2*pause, retryMax)
	}
}

// mayHaveWritten tells the states of tasks that have come so far.
func mayHaveWritten(state swarmpb.TaskState) bool {
	return state >= swarmpb.TaskState_TASK_STATE_RUNNING && state != swarmpb.TaskState_TASK_STATE_REJECTED
}

// lost tells the user once that a node does not answer.
func (c *call) lost(src *source, err error, what string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	id := src.info.GetNodeId()
	if c.quiet[id] {
		return nil
	}
	c.quiet[id] = true
	why := "no answer"
	if errors.Is(err, wire.ErrResourceExhausted) {
		why = printable(err.Error())
	}
	return c.noticeLocked(true, fmt.Sprintf("%s: %s; %s", src.info.GetNodeHostname(), why, what))
}

// removed tells the user once that a node is none any more.
func (c *call) removed(src *source) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	id := src.info.GetNodeId()
	if c.gone[id] {
		return nil
	}
	c.gone[id] = true
	return c.noticeLocked(false, fmt.Sprintf("%s: it is no node of the cluster any more, and its logs went with it", src.info.GetNodeHostname()))
}

// found tells the user that a node answers again.
func (c *call) found(src *source) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	id := src.info.GetNodeId()
	if !c.quiet[id] {
		return nil
	}
	delete(c.quiet, id)
	return c.noticeLocked(false, src.info.GetNodeHostname()+": it answers again")
}

// userError is one of sending to the user.
type userError struct{ err error }

func (e *userError) Error() string { return e.err.Error() }

// once asks the node once, and notes in query how far it has come.
func (c *call) once(ctx context.Context, src *source, query *swarmpb.LogQuery, emit func(context.Context, *swarmpb.LogFrame) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	request := &swarmpb.RelayRequest{Kind: &swarmpb.RelayRequest_Logs{Logs: swarmpb.Clone(query)}}
	f, err := c.server.ask(ctx, src.info.GetNodeId(), request)
	if err != nil {
		return err
	}
	if err := c.found(src); err != nil {
		return &userError{err}
	}
	f.grant(window)
	for {
		frame, err := f.next(silence)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if frame.GetError() != "" {
			return &errSaid{printable(frame.GetError())}
		}
		logs := frame.GetLogs()
		if logs == nil {
			continue // it lives
		}
		if err := c.pass(ctx, src, logs, emit); err != nil {
			return err
		}
		if at := logs.GetPosition(); at.GetFile() != "" && len(at.GetFile()) <= 2*stampLen {
			query.After = at
		}
		// Whatever comes from here on is wanted, also where there was nothing to begin with.
		query.Tail = nil
		f.grant(1)
	}
}

// pass hands a frame on.
func (c *call) pass(ctx context.Context, src *source, logs *swarmpb.LogFrame, emit func(context.Context, *swarmpb.LogFrame) error) error {
	for i, text := range logs.GetNotices() {
		if i == maxNotices {
			break
		}
		if err := c.notice(true, fmt.Sprintf("%s on %s: %s", src.info.GetTaskName(), src.info.GetNodeHostname(), printable(text))); err != nil {
			return &userError{err}
		}
	}
	if len(logs.GetRecords()) == 0 {
		return nil
	}
	if !wellFormed(logs.GetRecords()) {
		return &errSaid{"what it sent is no log"}
	}
	if err := emit(ctx, logs); err != nil {
		return &userError{err}
	}
	return nil
}

// wellFormed says whether all lines have the head of a record: `2026-01-02T15:04:05.000000000Z stdout F text`. Users'
// terminals are shown it.
func wellFormed(records []byte) bool {
	for len(records) > 0 {
		i := bytes.IndexByte(records, '\n')
		if i < recordHead || !isHead(records[:recordHead]) {
			return false
		}
		records = records[i+1:]
	}
	return true
}

func isHead(head []byte) bool {
	for i, c := range head[:stampLen] {
		switch want := "0000-00-00T00:00:00.000000000Z"[i]; {
		case want == '0' && (c < '0' || c > '9'), want != '0' && c != want:
			return false
		}
	}
	switch string(head[stampLen:]) {
	case " stdout F ", " stdout P ", " stderr F ", " stderr P ":
		return true
	}
	return false
}

// printable is a node's text as one short line.
func printable(text string) string {
	if len(text) > maxErrorBytes {
		text = text[:maxErrorBytes] + "..."
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
}
