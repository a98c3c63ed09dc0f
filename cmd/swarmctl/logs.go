package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Where the parts of a log's record begin: `2026-01-02T15:04:05.000000000Z stdout F text`.
const (
	recordStamp = 30
	recordTag   = recordStamp + 1 + 6 + 1
	recordText  = recordTag + 2
)

// logFlags are what `service logs` is asked for.
type logFlags struct {
	follow, timestamps, raw bool
	noTaskIDs, noTrunc      bool
	tail                    tailFlag
	since                   sinceFlag
	format                  lineFormat
}

// tailFlag is a number of lines, or all.
type tailFlag struct{ lines *uint64 }

func (*tailFlag) Type() string { return "lines" }
func (f *tailFlag) String() string {
	if f.lines == nil {
		return "all"
	}
	return strconv.FormatUint(*f.lines, 10)
}

func (f *tailFlag) Set(s string) error {
	if s == "all" {
		f.lines = nil
		return nil
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return errors.New("want a number of lines, 0 or more, or all")
	}
	f.lines = &n
	return nil
}

// sinceFlag is a time, or how long ago it was.
type sinceFlag struct {
	text string
	at   time.Time
	ago  time.Duration
}

func (*sinceFlag) Type() string     { return "time" }
func (f *sinceFlag) String() string { return f.text }

func (f *sinceFlag) Set(s string) error {
	f.text, f.at, f.ago = s, time.Time{}, 0
	if d, err := time.ParseDuration(s); err == nil && d > 0 {
		f.ago = d
		return nil
	}
	layouts := []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04Z07:00", "2006-01-02T15:04", time.DateTime, "2006-01-02Z07:00", time.DateOnly}
	for _, layout := range layouts {
		if at, err := time.ParseInLocation(layout, s, time.Local); err == nil && at.Unix() > 0 {
			f.at = at
			return nil
		}
	}
	if at, ok := unixTime(s); ok {
		f.at = at
		return nil
	}
	return errors.New("want how long ago, such as 90s or 2h, or a time such as 2026-01-02T15:04:05Z, 2026-01-02 or 1767366245 (seconds since 1970)")
}

// unixTime reads seconds since 1970, with up to nine digits behind the point.
func unixTime(s string) (time.Time, bool) {
	whole, part, _ := strings.Cut(s, ".")
	seconds, err := strconv.ParseUint(whole, 10, 33) // to the year 2242
	if err != nil || seconds == 0 || len(part) > 9 {
		return time.Time{}, false
	}
	nanoseconds, err := strconv.ParseUint(part+strings.Repeat("0", 9-len(part)), 10, 32)
	return time.Unix(int64(seconds), int64(nanoseconds)), err == nil
}

// nanoseconds since 1970; 0 without a time.
func (f *sinceFlag) nanoseconds(now time.Time) int64 {
	switch {
	case f.ago > 0:
		return now.Add(-f.ago).UnixNano()
	case f.at.IsZero():
		return 0
	}
	return f.at.UnixNano()
}

// lineFormat is text or json.
type lineFormat struct{ json bool }

func (*lineFormat) Type() string { return "format" }
func (f *lineFormat) String() string {
	if f.json {
		return formatJSON
	}
	return "text"
}

func (f *lineFormat) Set(s string) error {
	if s != "text" && s != formatJSON {
		return errors.New("want text or json")
	}
	f.json = s == formatJSON
	return nil
}

func (a *app) serviceLogsCommand() *cobra.Command {
	var flags logFlags
	cmd := &cobra.Command{
		Use: "logs SERVICE|TASK", Short: "Show what the tasks of a service, or one task, have written",
		Long: `Show what the tasks of a service have written, or one task, on whichever nodes they run or ran: those that
have ended too, for as long as their nodes keep the logs. Without --follow the lines come in the order of
their times.

A line begins with the replica's name, the ID of the attempt at it that wrote the line, and its node.

What a task wrote to its standard error goes to standard error. So do notices, of a node that does not
answer for example; where something is missing for that reason, the exit code is 1. With --follow, a node
that comes back goes on where it was, and tasks that are new to the service appear by themselves.`,
		Example: `  swarmctl service logs --tail 100 web
  swarmctl service logs -f --since 10m --timestamps web
  swarmctl service logs --raw web.1 > web.log
  swarmctl service logs --format json web | jq -r 'select(.stream == "stderr") | .text'`,
		Args: oneArg("service or task"), ValidArgsFunction: first(a.complete(logNames)),
	}
	cmd.RunE = a.call(func(ctx context.Context, c *client, args []string) error {
		if flags.raw && flags.format.json {
			return usageError(cmd, "--raw and --format json exclude each other")
		}
		return a.logs(ctx, c, args[0], &flags)
	})
	f := cmd.Flags()
	f.BoolVarP(&flags.follow, "follow", "f", false, "go on with what is written from now on, until Ctrl-C")
	f.VarP(&flags.tail, "tail", "n", "begin with the last `lines` of each task")
	f.Var(&flags.since, "since", "only what was written since a `time`, or for so long: 2026-01-02T15:04:05Z, 10m")
	f.BoolVarP(&flags.timestamps, "timestamps", "t", false, "put its time before each line")
	f.BoolVar(&flags.raw, "raw", false, "print lines as they were written, without saying of which task they are")
	f.BoolVar(&flags.noTaskIDs, "no-task-ids", false, "leave the tasks' IDs out")
	f.BoolVar(&flags.noTrunc, "no-trunc", false, "do not shorten the tasks' IDs")
	f.Var(&flags.format, "format", "text, or json: an object on a line of its own for each line of a log")
	completeWords(cmd, "tail", "all", "10", "100", "1000")
	completeWords(cmd, "since", "10m", "1h", "24h")
	completeWords(cmd, "format", "text", formatJSON)
	a.reading(cmd)
	return cmd
}

// logNames are services and their tasks.
func logNames(ctx context.Context, c *client) ([]cobra.Completion, error) {
	services, err := serviceNames(ctx, c)
	if err != nil {
		return nil, err
	}
	tasks, err := taskNames(ctx, c)
	return append(services, tasks...), err
}

func (a *app) logs(ctx context.Context, c *client, target string, flags *logFlags) error {
	req := &swarmpb.LogsStreamRequest{Target: target, Follow: flags.follow, Tail: flags.tail.lines, Since: flags.since.nanoseconds(a.now())}
	stream, err := swarmpb.NewLogsClient(&link{conn: c.conn, app: a}).Stream(ctx, req)
	if err != nil {
		return err
	}
	p := newLogPrinter(a, flags)
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := p.print(message); err != nil {
			return err
		}
	}
	if p.missing && !flags.follow {
		return fmt.Errorf("logs of %s: not all could be read, see above", target)
	}
	return nil
}

// logPrinter shows the messages of a stream of logs.
type logPrinter struct {
	flags    *logFlags
	out, err *bufio.Writer
	terminal bool
	sources  map[uint32]*shownSource
	// width is that of the widest name so far.
	width int
	// missing: something that was asked for is not there.
	missing bool
}

// shownSource is a task whose lines are shown.
type shownSource struct {
	*swarmpb.LogSource
	name   string
	colour string
	// begun, for each stream: the line goes on, which raw output does not break.
	begun [2]bool
}

func newLogPrinter(a *app, flags *logFlags) *logPrinter {
	return &logPrinter{
		flags: flags, out: bufio.NewWriterSize(a.out, 64<<10), err: bufio.NewWriterSize(a.err, 64<<10),
		terminal: a.terminal && os.Getenv("NO_COLOR") == "", sources: map[uint32]*shownSource{},
	}
}

func (p *logPrinter) print(m *swarmpb.LogsStreamResponse) error {
	switch {
	case m.GetSource() != nil:
		s := &shownSource{LogSource: m.GetSource()}
		s.name = clean(p.nameOf(s.LogSource))
		s.colour = fmt.Sprintf("\x1b[3%dm", 1+s.GetNumber()%6)
		p.sources[s.GetNumber()] = s
		p.width = max(p.width, utf8.RuneCountInString(s.name))
	case m.GetNotice() != nil:
		p.missing = p.missing || m.GetNotice().GetMissing()
		_, _ = fmt.Fprintln(p.err, "swarmctl:", clean(m.GetNotice().GetText()))
	}
	for _, records := range m.GetBatch().GetRecords() {
		s := p.sources[records.GetSource()]
		if s == nil {
			continue
		}
		for rest := records.GetRecords(); len(rest) > 0; {
			i := bytes.IndexByte(rest, '\n')
			if i < recordText {
				break // no log
			}
			if err := p.line(s, rest[:i]); err != nil {
				return err
			}
			rest = rest[i+1:]
		}
	}
	return errors.Join(p.out.Flush(), p.err.Flush())
}

// nameOf is what stands before a task's lines.
func (p *logPrinter) nameOf(s *swarmpb.LogSource) string {
	name := s.GetTaskName()
	switch {
	case p.flags.noTaskIDs:
	case p.flags.noTrunc:
		name += "." + s.GetTaskId()
	default:
		name += "." + short(s.GetTaskId())
	}
	return name + "@" + s.GetNodeHostname()
}

// line shows a record.
func (p *logPrinter) line(s *shownSource, record []byte) error {
	stream, w := 0, p.out
	if record[recordTag-2] == 'r' {
		stream = 1
	}
	stamp, partial, text := record[:recordStamp], record[recordTag] == 'P', record[recordText:]
	if p.flags.format.json {
		return p.json(s, string(stamp), stream, partial, text)
	}
	if stream == 1 {
		// What both streams say comes in the order in which it was said, where both are one terminal.
		if p.terminal && p.out.Buffered() > 0 {
			if err := p.out.Flush(); err != nil {
				return err
			}
		}
		w = p.err
	} else if p.terminal && p.err.Buffered() > 0 {
		if err := p.err.Flush(); err != nil {
			return err
		}
	}
	goesOn := p.flags.raw && s.begun[stream]
	s.begun[stream] = partial
	if p.flags.timestamps && !goesOn {
		_, _ = w.Write(stamp)
		_ = w.WriteByte(' ')
	}
	if !p.flags.raw {
		p.prefix(w, s)
		if p.terminal {
			text = harmless(text)
		}
	}
	_, err := w.Write(text) // a bufio.Writer keeps its first error
	if !p.flags.raw || !partial {
		err = w.WriteByte('\n')
	}
	return err
}

func (p *logPrinter) prefix(w *bufio.Writer, s *shownSource) {
	if p.terminal {
		_, _ = w.WriteString(s.colour)
	}
	_, _ = w.WriteString(s.name)
	for range p.width - utf8.RuneCountInString(s.name) {
		_ = w.WriteByte(' ')
	}
	_, _ = w.WriteString(" | ")
	if p.terminal {
		_, _ = w.WriteString("\x1b[0m")
	}
}

// logLine is a line of a log as JSON.
type logLine struct {
	Time    string `json:"time"`
	Service string `json:"service"`
	Task    string `json:"task"`
	TaskID  string `json:"taskID"`
	Attempt uint64 `json:"attempt"`
	Node    string `json:"node"`
	NodeID  string `json:"nodeID"`
	Stream  string `json:"stream"`
	Partial bool   `json:"partial"`
	Text    string `json:"text"`
}

func (p *logPrinter) json(s *shownSource, stamp string, stream int, partial bool, text []byte) error {
	line, err := jsonText(logLine{
		Time: stamp, Service: s.GetServiceName(), Task: s.GetTaskName(), TaskID: s.GetTaskId(), Attempt: s.GetAttempt(),
		Node: s.GetNodeHostname(), NodeID: s.GetNodeId(), Stream: [2]string{"stdout", "stderr"}[stream], Partial: partial, Text: string(text),
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(p.out, line)
	return err
}

// harmless is text for a terminal: of what controls one, only colours and tabs are left, so that no container moves the
// cursor or renames the window of whoever reads its log.
func harmless(text []byte) []byte {
	if !bytes.ContainsFunc(text, isControl) && utf8.Valid(text) {
		return text
	}
	var out strings.Builder
	coloured := false
	for i := 0; i < len(text); {
		if n := colourLen(text[i:]); n > 0 {
			out.Write(text[i : i+n])
			coloured = true
			i += n
			continue
		}
		r, n := utf8.DecodeRune(text[i:])
		switch {
		case r == utf8.RuneError && n == 1, isControl(r):
			if r != '\r' || i+1 < len(text) { // a line that ends as on Windows
				out.WriteByte(' ')
			}
		default:
			out.Write(text[i : i+n])
		}
		i += n
	}
	if coloured {
		out.WriteString("\x1b[0m")
	}
	return []byte(out.String())
}

func isControl(r rune) bool { return r != '\t' && (r < ' ' || r >= 0x7f && r < 0xa0) }

// colourLen is the length of the sequence that sets a colour or a style at the beginning of text; 0 = there is none.
func colourLen(text []byte) int {
	if !bytes.HasPrefix(text, []byte("\x1b[")) {
		return 0
	}
	for i := 2; i < len(text) && i < 32; i++ {
		switch c := text[i]; {
		case c == 'm':
			return i + 1
		case (c < '0' || c > '9') && c != ';' && c != ':':
			return 0
		}
	}
	return 0
}
