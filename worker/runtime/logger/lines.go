package main

import (
	"bytes"
	"time"
)

// maxLine bounds a line, and so the memory of a container that never ends one.
const maxLine = 16 << 10

// timeLayout has a fixed width, so that lines sort by time.
const timeLayout = "2006-01-02T15:04:05.000000000Z"

// lines turns a stream into records. partial holds the open line, at most maxLine bytes.
type lines struct {
	out     *output
	stream  string
	now     func() time.Time
	partial []byte
	record  []byte
}

func newLines(out *output, stream string) *lines {
	return &lines{out: out, stream: stream, now: time.Now}
}

func (l *lines) write(p []byte) {
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n')
		room := maxLine - len(l.partial)
		switch {
		case end >= 0 && end <= room:
			l.emit('F', p[:end])
			p = p[end+1:]
		case end < 0 && len(p) <= room:
			l.partial = append(l.partial, p...)
			p = nil
		default:
			l.emit('P', p[:room])
			p = p[room:]
		}
	}
}

// end writes the last line, which had no newline.
func (l *lines) end() {
	if len(l.partial) > 0 {
		l.emit('F', nil)
	}
	l.partial = nil
}

// emit writes the open line and rest as one record.
func (l *lines) emit(tag byte, rest []byte) {
	l.record = l.now().UTC().AppendFormat(l.record[:0], timeLayout)
	l.record = append(l.record, ' ')
	l.record = append(l.record, l.stream...)
	l.record = append(l.record, ' ', tag, ' ')
	l.record = append(l.record, l.partial...)
	l.record = append(l.record, rest...)
	l.record = append(l.record, '\n')
	l.partial = l.partial[:0]
	l.out.write(l.record)
}
