package registries

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"syscall"
	"time"
)

// LookEvery is how often a Watcher looks at the file. A change counts once the file has stayed as it is for so long: an
// editor may be in the middle of writing it.
const LookEvery = time.Second

// Watcher takes over changes of registries.toml at run time. All fields are required unless they say otherwise.
type Watcher struct {
	// Dir is the file's directory, and Plain the registries of plain HTTP beside it, both as Load takes them.
	Dir   string
	Plain []string
	// Known is the set that is in use; nil = an empty one.
	Known *Set
	// Use takes a set that differs from the one in use. After an error it is called again at the next look.
	Use func(*Set) error
	// Problem is told why the set in use is not what the file says, whenever that changes; nil = it is.
	Problem func(error)

	used, seen string // marks of the file
	problem    error
}

// Run looks at the file until ctx ends, and returns its error. A file with a mistake changes nothing.
func (w *Watcher) Run(ctx context.Context) error {
	ticker := time.NewTicker(LookEvery)
	defer ticker.Stop()
	for {
		w.look()
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (w *Watcher) look() {
	mark := w.mark()
	still := mark == w.seen
	w.seen = mark
	if !still || mark == w.used && w.problem == nil {
		return
	}
	err := w.load()
	if err == nil {
		w.used = mark
	}
	if fmt.Sprint(err) != fmt.Sprint(w.problem) {
		w.problem = err
		w.Problem(err)
	}
}

func (w *Watcher) load() error {
	set, err := Load(w.Dir, w.Plain)
	if err != nil {
		return err
	}
	if w.Known.same(set) {
		return nil
	}
	if err := w.Use(set); err != nil {
		return err
	}
	w.Known = set
	return nil
}

// mark differs when the file does, or is another one.
func (w *Watcher) mark() string {
	info, err := os.Stat(filepath.Join(w.Dir, FileName))
	if err != nil {
		return err.Error()
	}
	mark := fmt.Sprint(info.ModTime().UnixNano(), info.Size())
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		mark += fmt.Sprint(" ", st.Ino, st.Ctim)
	}
	return mark
}

func (s *Set) same(other *Set) bool {
	var mine map[string]Registry
	if s != nil {
		mine = s.byHost
	}
	return len(mine) == 0 && len(other.byHost) == 0 || reflect.DeepEqual(mine, other.byHost)
}
