// Package logs reads what worker/runtime/logger writes: a directory with current.log and its rotated predecessors,
// current.log.1 being the youngest of them.
//
// A Reader gives each line once and in order, across rotations while it reads: it holds the files that it has yet to read
// open, so a line is missed only when the log rotates faster than it is read, and then it says so. What it holds in memory
// is bounded. It writes nothing.
package logs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

const (
	current = "current.log"

	// stampLen is the length of a record's time, which is fixed: 2026-01-02T15:04:05.000000000Z.
	stampLen = 30
	// tagAt is where F or P stands: both streams' names have six letters. textAt is where the text begins.
	tagAt  = stampLen + 1 + 6 + 1
	textAt = tagAt + 2

	// MaxLine bounds a line that is put together of parts; a longer one comes in pieces of about this size.
	MaxLine = 256 << 10
	// blockSize is read at once.
	blockSize = 64 << 10
	// maxRecord bounds a record in the file: a longer one is not the logger's.
	maxRecord = 32 << 10
	// maxBack is how far before the place that reading begins at the parts of a line are looked for that is open there.
	maxBack = 1 << 20
	// maxFiles is the highest number of a rotated file that is looked for after a gap.
	maxFiles = 1000
	// maxHeld bounds the files that are held open, of which some may have been removed already.
	maxHeld = 8
)

var (
	stdout = []byte(" stdout ")
	stderr = []byte(" stderr ")
)

// valid says whether record, without its newline, is one of the logger's.
func valid(record []byte) bool {
	if len(record) < textAt || record[stampLen-1] != 'Z' || record[10] != 'T' || record[textAt-1] != ' ' {
		return false
	}
	if tag := record[tagAt]; tag != 'F' && tag != 'P' {
		return false
	}
	for i, c := range record[:stampLen-1] {
		digit := c >= '0' && c <= '9'
		if !digit && i != 4 && i != 7 && i != 10 && i != 13 && i != 16 && i != 19 {
			return false
		}
	}
	stream := record[stampLen:tagAt]
	return bytes.Equal(stream, stdout) || bytes.Equal(stream, stderr)
}

// file is one open file of a log.
type file struct {
	*os.File
	info os.FileInfo
	// first is the time of its first record, which names it over renames; empty until it has one.
	first string
}

func open(path string) (*file, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &file{File: f, info: info}, nil
}

// name is first, read as soon as it can be.
func (f *file) name() string {
	if f.first == "" {
		var stamp [stampLen]byte
		if n, _ := f.ReadAt(stamp[:], 0); n == stampLen {
			f.first = string(stamp[:])
		}
	}
	return f.first
}

func (f *file) same(g *file) bool { return os.SameFile(f.info, g.info) }

// scan opens the files of a log, the youngest first. Files move to higher numbers alone, so a walk upwards misses none
// that was there when it began; one that became current meanwhile is found by the next walk.
func scan(dir string) (files []*file, err error) {
	for n, missing := 0, 0; n <= maxFiles && missing < 2; n++ {
		path := filepath.Join(dir, current)
		if n > 0 {
			path += "." + strconv.Itoa(n)
		}
		f, err := open(path)
		if errors.Is(err, fs.ErrNotExist) {
			missing++ // within a rotation one number is free for a moment
			continue
		}
		if err != nil {
			closeAll(files)
			return nil, err
		}
		missing = 0
		if len(files) > 0 && files[len(files)-1].same(f) {
			f.Close() // it was renamed between two steps
			continue
		}
		files = append(files, f)
	}
	return files, nil
}

// list is scan, with another try when the log was rotated meanwhile.
func list(dir string) ([]*file, error) {
	for try := 0; ; try++ {
		files, err := scan(dir)
		if err != nil || try == 3 {
			return files, err
		}
		if len(files) == 0 {
			return nil, nil
		}
		if info, err := os.Stat(filepath.Join(dir, current)); err == nil && os.SameFile(info, files[0].info) {
			return files, nil
		}
		closeAll(files)
	}
}

func closeAll(files []*file) {
	for _, f := range files {
		f.Close()
	}
}

// tailStart is the offset in f after which the last n lines begin, or 0 and how many it has when it has fewer. A line
// counts by its last record. It reads from the end, which is at size.
func tailStart(f *file, size int64, n uint64) (start int64, lines uint64, err error) {
	buffer := make([]byte, blockSize+textAt)
	next := size // where the record after the one that is looked at begins
	for end := size; end > 0; {
		begin := max(0, end-blockSize)
		// Some bytes more than the block, so that the head of a record that begins at its end is seen.
		block := buffer[:min(int64(len(buffer)), size-begin)]
		if _, err := f.ReadAt(block, begin); err != nil {
			return 0, 0, err
		}
		for i := end - begin - 1; i >= -1; i-- {
			if i >= 0 && block[i] != '\n' || i < 0 && begin > 0 {
				continue
			}
			at := i + 1
			if at+tagAt < int64(len(block)) && block[at+tagAt] == 'F' {
				if lines == n {
					return next, lines, nil
				}
				lines++
			}
			next = begin + at
		}
		end = begin
	}
	return 0, lines, nil
}

// wholeEnd is where the last whole record of a file ends by now; the logger may be in the middle of the next one.
func wholeEnd(f *file) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	begin := max(0, info.Size()-maxRecord)
	last := make([]byte, info.Size()-begin)
	if _, err := f.ReadAt(last, begin); err != nil {
		return 0, err
	}
	return begin + int64(bytes.LastIndexByte(last, '\n')) + 1, nil
}
