package worker

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime/logs"
)

// Bounds of reading logs.
const (
	// logFrame is about how many bytes of lines go into one frame; a long line makes it larger. With its head it fits gRPC's
	// buffers of 32 KiB: for a larger message gRPC takes, and clears, one of 1 MiB at each hop.
	logFrame = 31 << 10
	// logPollMin and logPollMax bound the pause until a followed log is looked at again: the first after lines have come,
	// then longer ones.
	logPollMin, logPollMax = 50 * time.Millisecond, 200 * time.Millisecond
	// logQuiet is how long the log of an ended task has to stay as it is: the logger writes on for a moment.
	logQuiet = time.Second
	// logUnknown is how long a task may be unknown that is to be followed: its assignment may be on its way.
	logUnknown = 30 * time.Second
)

var errNoLogs = errors.New("it has no logs of the task, or no longer")

// streamLogs sends a task's log.
func (f *fleet) streamLogs(ctx context.Context, q *swarmpb.LogQuery, s *answerStream) error {
	if !swarmpb.ValidID(q.GetTaskId()) {
		return errors.New("the task's ID is none")
	}
	dir := f.cfg.LogDir(q.GetTaskId())
	options := logs.Options{Tail: q.Tail, After: logs.Position{File: q.GetAfter().GetFile(), Offset: int64(q.GetAfter().GetOffset())},
		Once: !q.GetFollow()}
	if since := q.GetSince(); since > 0 {
		options.Since = time.Unix(0, since)
	}
	known, ended := f.logState(q.GetTaskId())
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) && (!q.GetFollow() || known && ended) {
		return errNoLogs
	}
	reader, err := logs.NewReader(dir, options)
	if err != nil {
		return err
	}
	defer reader.Close()
	p := logPump{reader: reader, stream: s, beaten: time.Now()}
	if err := p.drain(ctx); err != nil {
		return err
	}
	if q.GetFollow() {
		if err := p.begun(ctx); err != nil {
			return err
		}
		if err := f.followLogs(ctx, q.GetTaskId(), &p); err != nil {
			return err
		}
	}
	return p.put(ctx, reader.Rest(nil))
}

// followLogs goes on until the task has ended and its log is complete.
func (f *fleet) followLogs(ctx context.Context, taskID string, p *logPump) error {
	pause := backoff{min: logPollMin, max: logPollMax}
	began, quiet := time.Now(), time.Now()
	for {
		known, ended := f.logState(taskID)
		switch {
		case !known && time.Since(began) > logUnknown:
			return errNoLogs
		case known && ended && time.Since(quiet) > logQuiet:
			return nil
		}
		if !sleep(ctx, pause.next(nil)) {
			return ctx.Err()
		}
		before := p.sent
		if err := p.drain(ctx); err != nil {
			return err
		}
		if p.sent > before || known && !ended {
			quiet = time.Now()
		}
		if p.sent > before {
			pause.reset()
		}
		if err := p.beat(); err != nil {
			return err
		}
	}
}

// logState says whether the node has the task, and whether it has ended.
func (f *fleet) logState(taskID string) (known, ended bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, ok := f.tasks[taskID]
	return ok, ok && t.status.GetState().Ended()
}

// logPump carries lines from a reader to a stream.
type logPump struct {
	reader *logs.Reader
	stream *answerStream
	sent   int // frames
	beaten time.Time
	// records is the room for a frame's lines, used again: what has been sent is encoded.
	records []byte
}

// drain sends all that there is for now.
func (p *logPump) drain(ctx context.Context) error {
	for {
		records, done, err := p.reader.Read(p.records[:0], logFrame)
		if err != nil {
			return err
		}
		if cap(records) <= 2*logFrame { // a long line's room is not kept
			p.records = records
		}
		if err := p.put(ctx, records); err != nil || done {
			return err
		}
	}
}

// put sends lines, and what is to be noted about them.
func (p *logPump) put(ctx context.Context, records []byte) error {
	notices := p.reader.Notices()
	if len(records) == 0 && len(notices) == 0 {
		return nil
	}
	frame := &swarmpb.LogFrame{Records: records, Notices: notices}
	if at := p.reader.Position(); at.File != "" {
		frame.Position = &swarmpb.LogPosition{File: at.File, Offset: uint64(at.Offset)}
	}
	p.sent++
	p.beaten = time.Now()
	return p.stream.put(ctx, &swarmpb.RelayFrame{Kind: &swarmpb.RelayFrame_Logs{Logs: frame}})
}

// begun tells where the lines to come begin when there was none yet: who loses this answer asks from there on.
func (p *logPump) begun(ctx context.Context) error {
	if p.sent > 0 {
		return nil
	}
	frame := &swarmpb.LogFrame{}
	if at := p.reader.Position(); at.File != "" {
		frame.Position = &swarmpb.LogPosition{File: at.File, Offset: uint64(at.Offset)}
	}
	p.sent++
	p.beaten = time.Now()
	return p.stream.put(ctx, &swarmpb.RelayFrame{Kind: &swarmpb.RelayFrame_Logs{Logs: frame}})
}

// beat shows the manager that the answer goes on, when it has said nothing for a while.
func (p *logPump) beat() error {
	if time.Since(p.beaten) < relayBeat {
		return nil
	}
	p.beaten = time.Now()
	return p.stream.beat()
}
