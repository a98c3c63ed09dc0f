package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A node whose disk is nearly full says so and takes no new tasks, until it has room again. What runs there goes on.
const (
	// spaceEvery is how often the disk is looked at.
	spaceEvery = 5 * time.Second
	// lowSpace in bytes, or this part of a small disk, and lowFiles are the least that a node keeps free.
	lowSpace     = 256 << 20
	lowSpacePart = 20
	lowFiles     = 1000
	// aboutSpace names the problem.
	aboutSpace = "disk"
)

// Disk is what a file system has.
type Disk struct {
	Free, Size uint64 // bytes
	// Files that can yet be made; Counted where the file system has such a bound.
	Files   uint64
	Counted bool
}

// statDisk asks the kernel about the file system that dir is on.
func statDisk(dir string) (Disk, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Disk{}, fmt.Errorf("look at the disk of %s: %w", dir, err)
	}
	block := uint64(max(st.Bsize, 0))
	return Disk{Free: st.Bavail * block, Size: st.Blocks * block, Files: st.Ffree, Counted: st.Files > 0}, nil
}

// space watches the disk that containers are on.
type space struct {
	dir    string
	disk   func(dir string) (Disk, error)
	issues *problems
	// full gets an entry at each look that finds the disk full.
	full chan struct{}

	mu  sync.Mutex
	why string // what keeps the node from taking tasks; empty = nothing
}

func newSpace(cfg Config, issues *problems) *space {
	s := &space{dir: cfg.Dir, disk: cfg.Disk, issues: issues, full: make(chan struct{}, 1)}
	if s.disk == nil {
		s.disk = statDisk
	}
	return s
}

// takesNone is why the node can take no new tasks; empty when it can.
func (s *space) takesNone() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.why
}

// look brings the verdict up to date and reports whether it has changed. A disk that is full needs half as much again as
// the least before it counts as one with room, so that a node does not change its mind all the time.
func (s *space) look() bool {
	d, err := s.disk(s.dir)
	if err != nil {
		return false // nothing is known: it stays as it was
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	bytes, files := min(lowSpace, d.Size/lowSpacePart), uint64(lowFiles)
	if s.why != "" {
		bytes, files = bytes+bytes/2, files+files/2
	}
	full := d.Free < bytes || d.Counted && d.Files < files
	if full {
		poke(s.full)
	}
	if full == (s.why != "") {
		return false
	}
	s.why = ""
	if d.Free < bytes {
		s.why = fmt.Sprintf("its disk is full: %d MiB of %d MiB are free in %s; make room there", d.Free>>20, d.Size>>20, s.dir)
	} else if full {
		s.why = fmt.Sprintf("its disk is full: only %d more files can be made in %s; make room there", d.Files, s.dir)
	}
	var problem error
	if full {
		problem = errors.New(s.why)
	}
	s.issues.set(aboutSpace, problem)
	return true
}

// run looks at the disk until ctx ends, and calls changed when the verdict is another one.
func (s *space) run(ctx context.Context, changed func()) {
	for {
		if s.look() {
			changed()
		}
		if !sleep(ctx, spaceEvery) {
			return
		}
	}
}
