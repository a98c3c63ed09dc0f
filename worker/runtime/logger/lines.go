package main

import "bytes"

// maxLine bounds a line, and so the memory of a container that never ends one.
const maxLine = 16 << 10

// lines turns a stream into records. partial holds the open line, at most maxLine bytes.
type lines struct {
	out     *output
	full    string // what stands between the time and the text of a full line
	part    string // and of a part of one
	partial []byte
}

func newLines(out *output, stream string) *lines {
	return &lines{out: out, full: " " + stream + " F ", part: " " + stream + " P "}
}

func (l *lines) write(p []byte) {
	l.out.stamps.tick()
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n')
		room := maxLine - len(l.partial)
		switch {
		case end >= 0 && end <= room:
			l.emit(l.full, p[:end])
			p = p[end+1:]
		case end < 0 && len(p) <= room:
			l.partial = append(l.partial, p...)
			p = nil
		default:
			l.emit(l.part, p[:room])
			p = p[room:]
		}
	}
}

// end writes the last line, which had no newline.
func (l *lines) end() {
	if len(l.partial) > 0 {
		l.emit(l.full, nil)
	}
	l.partial = nil
}

// emit writes the open line and rest as one record.
func (l *lines) emit(head string, rest []byte) {
	o := l.out
	o.room(len(timeLayout) + len(head) + len(l.partial) + len(rest) + 1)
	b := append(o.buffer, o.stamps.next()...)
	b = append(b, head...)
	if len(l.partial) > 0 {
		b = append(b, l.partial...)
		l.partial = l.partial[:0]
	}
	b = append(b, rest...)
	o.buffer = append(b, '\n')
}
