package logs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Options say what of a log is read.
type Options struct {
	// Tail is the number of last lines to begin with; nil = all.
	Tail *uint64
	// Since leaves out what was written before; zero = nothing.
	Since time.Time
	// After goes on where a former reader's Position was; Tail is not looked at then. Zero = not.
	After Position
	// Once: what is written after the log was opened is not read, so that a task that writes as fast as it is read has an end.
	Once bool
}

// Position is a place in a log, after a record.
type Position struct {
	// File is the time of the first record of the file.
	File   string
	Offset int64
}

// Reader reads one log. It is for one goroutine.
type Reader struct {
	dir   string
	since []byte
	// files are held open: the one that is read, then those after it.
	files  []*file
	offset int64 // of the first byte in the file that is not in block
	// block holds what was read and not given out yet, from used on; an open record's head among it.
	block []byte
	used  int
	// open holds the parts of each stream's line so far, as one record without its newline; empty = none.
	open [2][]byte
	// corrupt are records that were skipped since the last notice.
	corrupt int
	// skipping: the rest of a record that is too long is left out.
	skipping bool
	// former is the position at the end of the file before, which counts until the one that is read has a name.
	former  Position
	notices []string
	// once: nothing is read beyond end in the file that was the last one when the log was opened.
	once    bool
	end     int64
	last    [stampLen]byte // time of the last record read
	stamped bool
}

// NewReader opens the log in dir. A log that is not there yet has no lines; it may appear later.
func NewReader(dir string, o Options) (*Reader, error) {
	r := &Reader{dir: dir, block: make([]byte, 0, 2*blockSize)}
	if !o.Since.IsZero() {
		r.since = []byte(o.Since.UTC().Format("2006-01-02T15:04:05.000000000Z"))
	}
	files, err := list(dir)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	slices.Reverse(files)
	r.files = files
	if r.once = o.Once; r.once && len(files) > 0 {
		if r.end, err = wholeEnd(files[len(files)-1]); err != nil {
			return nil, errors.Join(fmt.Errorf("open log: %w", err), r.Close())
		}
	}
	switch {
	case o.After.File != "":
		err = r.resume(o.After)
	case o.Tail != nil:
		err = r.tail(*o.Tail)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("find where to begin in the log: %w", err), r.Close())
	}
	r.skipOld()
	return r, nil
}

// Close ends it.
func (r *Reader) Close() error {
	closeAll(r.files)
	r.files = nil
	return nil
}

func (r *Reader) resume(after Position) error {
	for i, f := range r.files {
		if f.name() != after.File {
			continue
		}
		info, err := f.Stat()
		if err != nil {
			return err
		}
		// A file that has become shorter has lost what a full disk cut short: nothing before its end is new.
		return r.begin(i, min(max(0, after.Offset), info.Size()))
	}
	r.former = after
	if len(r.files) > 0 {
		r.gap(after.File)
	}
	return nil
}

// begin has reading start at an offset of one of the files, which is the beginning of a record. The parts before it of
// lines that end after it are taken up, as far as they are among the maxBack bytes before it.
func (r *Reader) begin(file int, offset int64) error {
	back, from, start := int64(maxBack), file, max(0, offset-maxBack)
	for back -= offset; back > 0 && from > 0; back -= r.files[from].info.Size() {
		from--
		info, err := r.files[from].Stat()
		if err != nil {
			return err
		}
		r.files[from].info = info
		start = max(0, info.Size()-back)
	}
	buffer := bufio.NewReaderSize(nil, maxRecord)
	for ; from <= file; from++ {
		end := offset
		if from < file {
			end = r.files[from].info.Size()
		}
		if err := r.takeUp(buffer, r.files[from], start, end); err != nil {
			return err
		}
		start = 0
	}
	r.corrupt, r.skipping = 0, false // they are before what is read
	closeAll(r.files[:file])
	r.files, r.offset = r.files[file:], offset
	return nil
}

// takeUp reads a stretch of a file for the parts of open lines alone.
func (r *Reader) takeUp(buffer *bufio.Reader, f *file, start, end int64) error {
	within := start > 0
	if within {
		start-- // the newline there says that a record begins
	}
	buffer.Reset(io.NewSectionReader(f, start, end-start))
	var given []byte
	for {
		record, err := buffer.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, bufio.ErrBufferFull):
			within = true // no record of the logger's is so long
			continue
		case err != nil:
			return err
		}
		if !within {
			given = r.take(given[:0], record)
		}
		within = false
	}
}

func (r *Reader) tail(n uint64) error {
	for i := len(r.files) - 1; i >= 0; i-- {
		size := r.end
		if !r.once || i < len(r.files)-1 {
			info, err := r.files[i].Stat()
			if err != nil {
				return err
			}
			size = info.Size()
		}
		start, lines, err := tailStart(r.files[i], size, n)
		if err != nil {
			return err
		}
		if start > 0 || lines >= n && i == 0 {
			return r.begin(i, start)
		}
		n -= lines
	}
	return nil
}

// skipOld leaves out files whose lines are all too old.
func (r *Reader) skipOld() {
	for len(r.since) > 0 && len(r.files) > 1 {
		next := r.files[1].name()
		if next == "" || next > string(r.since) {
			return
		}
		r.next()
	}
}

// next goes on to the file after the one that was read to its end.
func (r *Reader) next() {
	r.former = r.Position()
	r.files[0].Close()
	r.files = r.files[1:]
	r.offset, r.block, r.used, r.skipping = 0, r.block[:0], 0, false
}

func (r *Reader) gap(after string) {
	if len(after) >= 19 {
		after = after[:19] + "Z"
	}
	r.notices = append(r.notices, "the log was rotated faster than it was read: lines written after "+after+" may be missing here")
}

// Position is where the lines that were given out end; a line whose last part is still to come is not among them.
func (r *Reader) Position() Position {
	if len(r.files) == 0 || r.files[0].name() == "" {
		return r.former
	}
	return Position{File: r.files[0].name(), Offset: r.offset - int64(len(r.block)-r.used)}
}

// Notices are what could not be read since the last call, in words.
func (r *Reader) Notices() []string {
	if r.corrupt > 0 {
		r.notices = append(r.notices, fmt.Sprintf("%d damaged lines of the log were left out", r.corrupt))
		r.corrupt = 0
	}
	notices := r.notices
	r.notices = nil
	return notices
}

// Read appends lines to p, each a whole record with its newline, until p holds at least about limit bytes or there is
// nothing more for now, which done says. What it gives out for one call is at most limit and two lines. Without an error
// that lasts, the next call goes on.
func (r *Reader) Read(p []byte, limit int) (_ []byte, done bool, err error) {
	for len(p) < limit {
		if r.used < len(r.block) {
			if i := bytes.IndexByte(r.block[r.used:], '\n'); i >= 0 {
				record := r.block[r.used : r.used+i+1]
				r.used += i + 1
				p = r.take(p, record)
				continue
			}
		}
		more, err := r.fill()
		if err != nil || !more {
			return p, !more, err
		}
	}
	return p, false, nil
}

// fill reads on; false: there is nothing more for now.
func (r *Reader) fill() (bool, error) {
	switch {
	case r.once:
		if len(r.files) == 0 {
			return false, nil
		}
	case len(r.files) == 0:
		return r.look()
	default:
		if err := r.hold(); err != nil {
			return false, err
		}
	}
	r.block, r.used = r.block[:copy(r.block, r.block[r.used:])], 0
	if len(r.block) > maxRecord { // no record of the logger's is so long
		r.block, r.skipping = r.block[:0], true
	}
	for {
		// Whether the file is the last one is known before it is read: what it had then is read to its end.
		last := len(r.files) == 1
		room := int64(blockSize)
		if r.once && last {
			room = max(0, min(room, r.end-r.offset))
		}
		n, err := r.files[0].ReadAt(r.block[len(r.block):len(r.block)+int(room)], r.offset)
		if n > 0 {
			r.block, r.offset = r.block[:len(r.block)+n], r.offset+int64(n)
			return true, nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return false, fmt.Errorf("read log: %w", err)
		}
		if last {
			r.cutBack()
			return false, nil
		}
		if len(r.block) > 0 {
			r.corrupt++ // a file ends with a whole record
		}
		r.next()
	}
}

// cutBack follows a file that has become shorter: the logger takes a record back that a full disk cut short.
func (r *Reader) cutBack() {
	info, err := r.files[0].Stat()
	if err != nil || info.Size() >= r.offset {
		return
	}
	r.offset, r.block, r.used = info.Size(), r.block[:0], 0
}

// look opens a log that was not there.
func (r *Reader) look() (bool, error) {
	files, err := list(r.dir)
	if err != nil {
		return false, fmt.Errorf("open log: %w", err)
	}
	slices.Reverse(files)
	r.files = files
	return len(files) > 0, nil
}

// hold opens the files that have come after those that are held.
func (r *Reader) hold() error {
	newest := r.files[len(r.files)-1]
	info, err := os.Stat(filepath.Join(r.dir, current))
	if err != nil || os.SameFile(info, newest.info) || len(r.files) >= maxHeld {
		return nil // within a rotation there is none for a moment; the next call sees it
	}
	files, err := list(r.dir)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	at := slices.IndexFunc(files, newest.same)
	if at < 0 {
		at = len(files)
		if at == 0 {
			return nil
		}
		r.gap(newest.lastTime(r))
	} else {
		closeAll(files[at:])
	}
	files = files[:at]
	slices.Reverse(files)
	room := maxHeld - len(r.files)
	if len(files) > room {
		closeAll(files[room:])
		files = files[:room]
	}
	r.files = append(r.files, files...)
	return nil
}

// lastTime is that of the file's last lines, as far as is known.
func (f *file) lastTime(r *Reader) string {
	if r.files[0] == f && r.stamped {
		return string(r.last[:])
	}
	return f.name()
}

// take appends the line that record completes, if it does.
func (r *Reader) take(p, record []byte) []byte {
	body := record[:len(record)-1]
	if r.skipping {
		r.skipping = false
		r.corrupt++
		return p
	}
	if !valid(body) {
		r.corrupt++
		return p
	}
	copy(r.last[:], body)
	r.stamped = true
	if len(r.since) > 0 && bytes.Compare(body[:stampLen], r.since) < 0 {
		return p
	}
	stream := 0
	if body[tagAt-2] == 'r' {
		stream = 1
	}
	open := r.open[stream]
	if len(open) == 0 && body[tagAt] == 'F' {
		return append(p, record...)
	}
	if len(open) == 0 {
		open = append(open, body...)
	} else {
		open = append(open, body[textAt:]...)
	}
	open[tagAt] = body[tagAt]
	if body[tagAt] == 'P' && len(open) < MaxLine {
		r.open[stream] = open
		return p
	}
	p = append(append(p, open...), '\n')
	if cap(open) > MaxLine/4 {
		open = nil // long lines are rare; what they needed is not kept
	}
	r.open[stream] = open[:0]
	return p
}

// Rest appends the lines whose last part never came, once nothing more will be written.
func (r *Reader) Rest(p []byte) []byte {
	for i, open := range r.open {
		if len(open) > 0 {
			p = append(append(p, open...), '\n')
			r.open[i] = nil
		}
	}
	return p
}
