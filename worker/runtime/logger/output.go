package main

import (
	"os"
	"strconv"
	"time"
)

const current = "current.log"

// output is the rotated file. buffer holds whole records only, so that a file never ends within one.
type output struct {
	settings
	file    *os.File
	written int64 // bytes in the current file
	buffer  []byte
	dropped int // records that could not be written since the last that could
	pending int // records in buffer
	stamps  *stamps
}

// bufferSize is how much is gathered before a write; the pump flushes whatever is left at each turn.
const bufferSize = 64 << 10

func openOutput(s settings) (*output, error) {
	o := &output{settings: s, stamps: newStamps(), buffer: make([]byte, 0, bufferSize)}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, err
	}
	return o, o.open()
}

func (o *output) path(n int) string {
	if n == 0 {
		return o.dir + "/" + current
	}
	return o.dir + "/" + current + "." + strconv.Itoa(n)
}

func (o *output) open() error {
	file, err := os.OpenFile(o.path(0), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return err
	}
	o.file, o.written = file, info.Size()
	return nil
}

// room makes place for one record more of size bytes, which the caller appends to buffer.
func (o *output) room(size int) {
	if pending := o.written + int64(len(o.buffer)); pending > 0 && pending+int64(size) > o.size {
		o.flush()
		o.rotate()
	}
	if len(o.buffer)+size > bufferSize {
		o.flush()
	}
	o.pending++
}

// flush writes the buffer. What fails is dropped: the container must not wait for our disk.
func (o *output) flush() {
	if len(o.buffer) == 0 {
		return
	}
	if o.file == nil && o.open() != nil {
		o.drop()
		return
	}
	if o.dropped > 0 {
		notice := time.Now().UTC().AppendFormat(nil, timeLayout)
		notice = append(notice, " stderr F logger: dropped "+strconv.Itoa(o.dropped)+" lines that could not be written\n"...)
		if !o.put(notice) {
			o.drop()
			return
		}
		o.dropped = 0
	}
	if !o.put(o.buffer) {
		o.drop()
		return
	}
	o.buffer, o.pending = o.buffer[:0], 0
}

func (o *output) drop() {
	o.dropped += o.pending
	o.buffer, o.pending = o.buffer[:0], 0
}

// put writes all of p or, by cutting a torn record off again, nothing.
func (o *output) put(p []byte) bool {
	if _, err := o.file.Write(p); err != nil {
		o.file.Truncate(o.written)
		return false
	}
	o.written += int64(len(p))
	return true
}

// rotate shifts the files by one. When it cannot make a new one, a later flush tries again.
func (o *output) rotate() {
	if o.file != nil {
		o.file.Close()
		o.file = nil
	}
	o.written = 0
	if o.files == 1 {
		os.Remove(o.path(0))
	} else {
		for n := o.files - 2; n >= 0; n-- {
			os.Rename(o.path(n), o.path(n+1))
		}
	}
	if err := o.open(); err != nil {
		o.file = nil
	}
}

func (o *output) close() error {
	o.flush()
	if o.file == nil {
		return nil
	}
	return o.file.Close()
}
