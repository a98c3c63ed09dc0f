package logs

import (
	"os"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// A follow that breaks off, as its host is lost, and goes on where it was: each line comes once, whole, wherever it broke off.
func TestReader_ResumedAnywhere_GivesEachLineWholeAndOnce(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWriter(t, 20)
		r := newReader(t, w, Options{})
		got, lines := "", 0
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			stream := rapid.SampledFrom([]string{"stdout", "stderr"}).Draw(rt, "stream")
			switch rapid.IntRange(0, 4).Draw(rt, "step") {
			case 0, 1:
				w.record(stream, 'P', strings.Repeat("p", 3<<10)+stream)
			case 2:
				w.record(stream, 'F', "end")
				lines++
			case 3:
				w.rotate()
			case 4:
				got += drain(t, r)
				at := r.Position()
				r.Close()
				r = newReader(t, w, Options{After: at})
				if n := r.Notices(); n != nil {
					rt.Fatalf("notices %q", n)
				}
			}
		}
		got += drain(t, r)
		want := drain(t, newReader(t, w, Options{}))
		if got != want || strings.Count(got, "\n") != lines {
			rt.Fatalf("%d bytes in %d lines, want %d in %d", len(got), strings.Count(got, "\n"), len(want), lines)
		}
	})
}

func TestReader_TailWithinALongLine_GivesItWhole(t *testing.T) {
	w := newWriter(t, 3)
	w.record("stdout", 'F', "before")
	w.record("stdout", 'P', "head ")
	w.record("stderr", 'F', "between")
	w.rotate()
	w.record("stdout", 'F', "end")
	one := uint64(1)
	if got := texts(drain(t, newReader(t, w, Options{Tail: &one}))); !slices.Equal(got, []string{"head end"}) {
		t.Errorf("%q", got)
	}
}

// What was read and then taken back by the logger, for want of room on the disk, is not read a second time.
func TestReader_ResumedInAFileTakenBack_GoesOnAtItsEnd(t *testing.T) {
	w := newWriter(t, 3)
	w.record("stdout", 'F', "a")
	kept := int64(w.size)
	w.record("stdout", 'F', "taken back")
	r := newReader(t, w, Options{})
	drain(t, r)
	if err := os.Truncate(w.path(0), kept); err != nil {
		t.Fatal(err)
	}
	again := newReader(t, w, Options{After: r.Position()})
	got := drain(t, again)
	w.record("stdout", 'F', "b")
	if got := texts(got + drain(t, again)); !slices.Equal(got, []string{"b"}) {
		t.Errorf("%q", got)
	}
}

func TestReader_LineLongerThanWhatIsLookedBackAt_BeginsAtARecord(t *testing.T) {
	w := newWriter(t, 3)
	w.record("stdout", 'P', "lost head ")
	for range maxBack / (10 << 10) {
		w.record("stderr", 'F', strings.Repeat("x", 11<<10))
	}
	r := newReader(t, w, Options{})
	drain(t, r)
	w.record("stdout", 'F', "end")
	if got := texts(drain(t, newReader(t, w, Options{After: r.Position()}))); !slices.Equal(got, []string{"end"}) {
		t.Errorf("%q", got)
	}
}
