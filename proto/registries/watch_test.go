package registries

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// watched runs a Watcher over the directory in virtual time; step lets it look until what it sees has settled.
func watched(t *testing.T, dir string, known *Set, test func(w *watching)) {
	synctest.Test(t, func(t *testing.T) {
		x := &watching{t: t, path: filepath.Join(dir, FileName)}
		w := Watcher{
			Dir: dir, Plain: []string{"lab:5000"}, Known: known,
			Use: func(s *Set) error {
				if x.refuse == nil {
					x.used = append(x.used, s)
				}
				return x.refuse
			},
			Problem: func(err error) { x.problems = append(x.problems, err) },
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = w.Run(ctx) }()
		x.step()
		test(x)
		cancel()
		<-done
	})
}

type watching struct {
	t        *testing.T
	path     string
	refuse   error
	used     []*Set
	problems []error
}

func (x *watching) write(text string) {
	x.t.Helper()
	if err := os.WriteFile(x.path, []byte(text), 0o600); err != nil {
		x.t.Fatal(err)
	}
}

func (x *watching) step() {
	time.Sleep(3 * LookEvery)
	synctest.Wait()
}

func TestWatcher_FileChanges_IsTakenOver(t *testing.T) {
	dir := write(t, "[[registry]]\nhost = \"a.local\"\nplain_http = true\n")
	known, err := Load(dir, []string{"lab:5000"})
	if err != nil {
		t.Fatal(err)
	}
	watched(t, dir, known, func(x *watching) {
		if len(x.used)+len(x.problems) > 0 {
			t.Fatalf("nothing has changed, but %d sets and problems %v", len(x.used), x.problems)
		}
		x.write("[[registry]]\nhost = \"b.local\"\nca = \"ca.pem\"\n")
		x.step()
		if len(x.used) != 1 || x.used[0].Registry("b.local").CA == "" || x.used[0].Registry("a.local").PlainHTTP || !x.used[0].Registry("lab:5000").PlainHTTP {
			t.Fatalf("%+v", x.used)
		}
		if err := os.Remove(x.path); err != nil {
			t.Fatal(err)
		}
		x.step()
		if len(x.used) != 2 || x.used[1].Registry("b.local").CA != "" || !x.used[1].Registry("lab:5000").PlainHTTP || len(x.problems) > 0 {
			t.Fatalf("%+v %v", x.used, x.problems)
		}
	})
}

func TestWatcher_AMistake_KeepsTheOldSetAndIsToldOnce(t *testing.T) {
	dir := write(t, "")
	watched(t, dir, nil, func(x *watching) {
		before := len(x.used) // --insecure-registry alone
		x.write("[[registry]]\nhost = \"a.local\"\nca = \"missing.pem\"\n")
		x.step()
		x.step()
		if len(x.used) != before || len(x.problems) != 1 || !strings.Contains(x.problems[0].Error(), FileName+":3") {
			t.Fatalf("%d sets, problems %v", len(x.used), x.problems)
		}
		// What it names appears, with the file as it is.
		ca, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "missing.pem"), ca, 0o600); err != nil {
			t.Fatal(err)
		}
		x.step()
		if len(x.used) != before+1 || len(x.problems) != 2 || x.problems[1] != nil {
			t.Fatalf("%d sets, problems %v", len(x.used), x.problems)
		}
	})
}

func TestWatcher_FileIsBeingWritten_HalfOfItIsNotTaken(t *testing.T) {
	dir := write(t, "")
	watched(t, dir, nil, func(x *watching) {
		before := len(x.used)
		text := "[[registry]]\nhost = \"a.local\"\n"
		for range 5 {
			text += "# more\n"
			x.write(text)
			time.Sleep(LookEvery)
			synctest.Wait()
		}
		if len(x.used) != before {
			t.Fatal("a file that still changes was taken")
		}
		x.step()
		if len(x.used) != before+1 {
			t.Fatalf("%d sets", len(x.used)-before)
		}
	})
}

func TestWatcher_SetCannotBeUsed_IsTriedAgain(t *testing.T) {
	dir := write(t, "")
	watched(t, dir, nil, func(x *watching) {
		before := len(x.used)
		x.refuse = errors.New("the disk is full")
		x.write("[[registry]]\nhost = \"a.local\"\n")
		x.step()
		if len(x.problems) != 1 || x.problems[0] != x.refuse {
			t.Fatalf("%v", x.problems)
		}
		x.refuse = nil
		x.step()
		if len(x.used) != before+1 || len(x.problems) != 2 || x.problems[1] != nil {
			t.Fatalf("%d sets, problems %v", len(x.used), x.problems)
		}
	})
}
