package logs

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// writer does what the logger does: it appends whole records, and rotates between them.
type writer struct {
	tb    testing.TB
	dir   string
	files int
	file  *os.File
	size  int
	clock time.Time
}

func newWriter(tb testing.TB, files int) *writer {
	tb.Helper()
	dir, err := os.MkdirTemp(tb.TempDir(), "")
	if err != nil {
		tb.Fatal(err)
	}
	w := &writer{tb: tb, dir: dir, files: files, clock: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	w.open()
	tb.Cleanup(func() { w.file.Close() })
	return w
}

func (w *writer) path(n int) string {
	if n == 0 {
		return filepath.Join(w.dir, current)
	}
	return filepath.Join(w.dir, fmt.Sprintf("%s.%d", current, n))
}

func (w *writer) open() {
	var err error
	if w.file, err = os.OpenFile(w.path(0), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		w.tb.Fatal(err)
	}
	w.size = 0
}

func (w *writer) rotate() {
	w.file.Close()
	for n := w.files - 2; n >= 0; n-- {
		_ = os.Rename(w.path(n), w.path(n+1))
	}
	w.open()
}

func (w *writer) raw(text string) {
	n, err := w.file.WriteString(text)
	if err != nil {
		w.tb.Fatal(err)
	}
	w.size += n
}

// record writes one and returns it; times are all different and grow.
func (w *writer) record(stream string, tag byte, text string) string {
	w.clock = w.clock.Add(time.Millisecond)
	record := fmt.Sprintf("%s %s %c %s\n", w.clock.Format("2006-01-02T15:04:05.000000000Z"), stream, tag, text)
	w.raw(record)
	return record
}

func newReader(tb testing.TB, w *writer, o Options) *Reader {
	tb.Helper()
	r, err := NewReader(w.dir, o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { r.Close() })
	return r
}

// drain reads all that there is.
func drain(tb testing.TB, r *Reader) string {
	tb.Helper()
	var out []byte
	for {
		p, done, err := r.Read(nil, 1<<10)
		if err != nil {
			tb.Fatal(err)
		}
		out = append(out, p...)
		if done {
			return string(out)
		}
	}
}

func texts(records string) (out []string) {
	for record := range strings.Lines(records) {
		out = append(out, strings.TrimSuffix(record[textAt:], "\n"))
	}
	return out
}

func TestReader_RotatedWhileItReads_GivesEachLineOnceAndInOrder(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWriter(t, 4)
		r := newReader(t, w, Options{})
		var got []byte
		var want strings.Builder
		rotations := 0 // since it last read: beyond what is kept, lines are lost
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			switch step := rapid.IntRange(0, 9).Draw(rt, "step"); {
			case step < 5:
				for range rapid.IntRange(1, 5).Draw(rt, "records") {
					want.WriteString(w.record(rapid.SampledFrom([]string{"stdout", "stderr"}).Draw(rt, "stream"), 'F',
						strings.Repeat("x", rapid.IntRange(0, 300).Draw(rt, "length"))))
				}
			case step < 7 && rotations < w.files-1:
				w.rotate()
				rotations++
			case step == 7: // on another node, or after a restart of this one
				at := r.Position()
				r.Close()
				r = newReader(t, w, Options{After: at})
				fallthrough
			default:
				p, done, err := r.Read(nil, rapid.IntRange(1, 2000).Draw(rt, "limit"))
				if err != nil {
					rt.Fatal(err)
				}
				got = append(got, p...)
				if done {
					rotations = 0
				}
			}
		}
		got = append(got, drain(t, r)...)
		if string(got) != want.String() {
			rt.Fatalf("got\n%swant\n%s", got, want.String())
		}
		if n := r.Notices(); len(n) > 0 {
			rt.Fatalf("notices %q", n)
		}
	})
}

func TestReader_WriterAtFullSpeed_NothingIsLostOrTwice(t *testing.T) {
	w := newWriter(t, 50)
	r := newReader(t, w, Options{})
	const lines = 40_000
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range lines {
			w.record("stdout", 'F', fmt.Sprint(i))
			if w.size > 100<<10 {
				w.rotate()
			}
		}
	}()
	next := 0
	for ended := false; ; {
		p, idle, err := r.Read(nil, 32<<10)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range texts(string(p)) {
			if text != fmt.Sprint(next) {
				t.Fatalf("line %q, want %d; notices %q", text, next, r.Notices())
			}
			next++
		}
		if idle && ended {
			break
		}
		select {
		case <-done:
			ended = true
		default:
		}
	}
	if next != lines {
		t.Errorf("%d lines, want %d", next, lines)
	}
}

func TestReader_OvertakenByRotation_SaysSoAndGoesOn(t *testing.T) {
	w := newWriter(t, 3)
	r := newReader(t, w, Options{})
	w.record("stdout", 'F', "first")
	if got := texts(drain(t, r)); !slices.Equal(got, []string{"first"}) {
		t.Fatalf("%q", got)
	}
	for i := range 10 {
		w.record("stdout", 'F', fmt.Sprint(i))
		w.rotate()
	}
	w.record("stdout", 'F', "last")
	// The file that it has open is read to its end, then what is left of the others.
	if got := texts(drain(t, r)); !slices.Equal(got, []string{"0", "8", "9", "last"}) {
		t.Errorf("%q", got)
	}
	if n := r.Notices(); len(n) != 1 || !strings.Contains(n[0], "rotated faster") {
		t.Errorf("notices %q", n)
	}
	at := Position{File: "2020-01-01T00:00:00.000000000Z", Offset: 7}
	if r = newReader(t, w, Options{After: at}); len(texts(drain(t, r))) != 3 || len(r.Notices()) != 1 {
		t.Error("a position that was rotated away")
	}
}

func TestReader_Parts_ArePutTogetherUpToABound(t *testing.T) {
	w := newWriter(t, 3)
	w.record("stdout", 'P', "one ")
	w.record("stderr", 'F', "between")
	w.rotate()
	w.record("stdout", 'F', "line")
	part := strings.Repeat("x", 16<<10)
	const parts = 40
	for range parts {
		w.record("stdout", 'P', part)
	}
	w.record("stdout", 'F', "end")
	w.record("stderr", 'P', "never ended")
	r := newReader(t, w, Options{})
	records := drain(t, r)
	got := texts(records)
	if got[0] != "between" || got[1] != "one line" {
		t.Errorf("%q", got[:2])
	}
	long := ""
	for i, record := range slices.Collect(strings.Lines(records))[2:] {
		if len(record) > MaxLine+len(part)+textAt {
			t.Errorf("a piece of %d bytes", len(record))
		}
		long += got[i+2]
		if want := byte('P'); len(got) > i+3 && record[tagAt] != want {
			t.Errorf("piece %d is tagged %c", i, record[tagAt])
		}
	}
	if long != strings.Repeat(part, parts)+"end" {
		t.Errorf("%d bytes of the long line", len(long))
	}
	if rest := texts(string(r.Rest(nil))); !slices.Equal(rest, []string{"never ended"}) {
		t.Errorf("rest %q", rest)
	}
}

func TestReader_DamagedLines_AreLeftOutAndCounted(t *testing.T) {
	w := newWriter(t, 3)
	w.record("stdout", 'F', "a")
	w.raw("garbage\n\n2026-01-02T15:04:05.000000000Z stdxxx F no stream\n" + strings.Repeat("z", 200<<10) + "\n")
	w.raw(string(make([]byte, 100)) + "\n")
	w.record("stdout", 'F', "b")
	w.raw("2026-01-02T15:04:05.0000") // cut off
	w.rotate()
	w.record("stdout", 'F', "c")
	r := newReader(t, w, Options{})
	if got := texts(drain(t, r)); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("%q", got)
	}
	if n := r.Notices(); len(n) != 1 || !strings.Contains(n[0], "6 damaged lines") {
		t.Errorf("notices %q", n)
	}
	if n := r.Notices(); n != nil {
		t.Errorf("again %q", n)
	}
}

func TestReader_FileTakenBack_GoesOnAtItsEnd(t *testing.T) {
	w := newWriter(t, 3)
	w.record("stdout", 'F', "a")
	kept := int64(w.size)
	w.raw("2026-01-02T15:04:0")
	r := newReader(t, w, Options{})
	got := drain(t, r)
	if err := w.file.Truncate(kept); err != nil {
		t.Fatal(err)
	}
	got += drain(t, r)
	w.record("stdout", 'F', "b")
	got += drain(t, r)
	if got := texts(got); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("%q", got)
	}
}

func TestReader_TailAndSince_BeginWhereAsked(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWriter(t, 6)
		var all []string
		var times []time.Time
		for range rapid.IntRange(0, 40).Draw(rt, "lines") {
			text := strings.Repeat("y", rapid.SampledFrom([]int{0, 3, 200, 9000}).Draw(rt, "length")) + fmt.Sprint(len(all))
			w.record("stdout", 'F', text)
			all, times = append(all, text), append(times, w.clock)
			if w.size > 40<<10 {
				w.rotate()
			}
		}
		n := rapid.Uint64Range(0, 50).Draw(rt, "tail")
		got := texts(drain(t, newReader(t, w, Options{Tail: &n})))
		if want := all[max(0, len(all)-int(n)):]; !slices.Equal(got, want) {
			rt.Fatalf("tail %d: %d lines, want %d", n, len(got), len(want))
		}
		if len(all) == 0 {
			return
		}
		at := rapid.IntRange(0, len(all)-1).Draw(rt, "since")
		if got := texts(drain(t, newReader(t, w, Options{Since: times[at]}))); !slices.Equal(got, all[at:]) {
			rt.Fatalf("since line %d: %d lines, want %d", at, len(got), len(all)-at)
		}
	})
}

// A task that writes as fast as its log is read, and has it rotated away: who does not follow it comes to an end.
func TestReader_OnceWhileTheWriterGoesOn_ReadsWhatWasThere(t *testing.T) {
	w := newWriter(t, 3)
	w.record("stdout", 'F', "one")
	w.rotate()
	w.record("stdout", 'F', "two")
	w.record("stdout", 'F', "three")
	n := uint64(2)
	for _, test := range []struct {
		options Options
		want    []string
	}{
		{Options{Once: true}, []string{"one", "two", "three"}},
		{Options{Once: true, Tail: &n}, []string{"two", "three"}},
	} {
		r := newReader(t, w, test.options)
		var got []string
		for reads := 0; ; reads++ {
			w.record("stdout", 'F', "later")
			if reads%2 == 1 {
				w.rotate()
			}
			records, done, err := r.Read(nil, 1)
			if err != nil || reads > 100 {
				t.Fatalf("no end after %d reads, %v", reads, err)
			}
			got = append(got, texts(string(records))...)
			if done {
				break
			}
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("read %q, want %q", got, test.want)
		}
		// The next one begins with a log as at first.
		w = newWriter(t, 3)
		w.record("stdout", 'F', "two")
		w.record("stdout", 'F', "three")
	}
}

// The logger is in the middle of a record: it does not count among the last lines.
func TestReader_OnceInTheMiddleOfARecord_TailIsOfWholeLines(t *testing.T) {
	w := newWriter(t, 3)
	for _, text := range []string{"one", "two", "three"} {
		w.record("stdout", 'F', text)
	}
	w.raw("2026-01-02T03:04:06.000000000Z stdout F fo")
	n := uint64(2)
	if got := texts(drain(t, newReader(t, w, Options{Once: true, Tail: &n}))); !slices.Equal(got, []string{"two", "three"}) {
		t.Errorf("read %q", got)
	}
}

func TestReader_LogThatAppearsLater_IsRead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "logs")
	r, err := NewReader(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got := drain(t, r); got != "" {
		t.Errorf("%q", got)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	w := &writer{tb: t, dir: dir, files: 2, clock: time.Unix(1, 0).UTC()}
	w.open()
	defer w.file.Close()
	if drain(t, r) != "" || r.Position() != (Position{}) {
		t.Error("an empty log has lines")
	}
	w.record("stderr", 'F', "hello")
	if got := texts(drain(t, r)); !slices.Equal(got, []string{"hello"}) {
		t.Errorf("%q", got)
	}
}

func TestReader_Anything_NeverPanicsAndStaysBounded(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		w := newWriter(t, 2)
		for range random.IntN(20) {
			switch random.IntN(3) {
			case 0:
				w.record("stdout", "FP"[random.IntN(2)], strings.Repeat("q", random.IntN(20<<10)))
			case 1:
				w.raw(string(bytes.Repeat([]byte{byte(random.IntN(256))}, random.IntN(50<<10))))
			case 2:
				w.rotate()
			}
		}
		n := uint64(random.IntN(5))
		for _, o := range []Options{{}, {Tail: &n}, {Since: w.clock}} {
			r := newReader(t, w, o)
			drain(t, r)
			if cap(r.block) > 2*blockSize || cap(r.open[0]) > 2*MaxLine {
				t.Fatalf("it holds %d and %d bytes", cap(r.block), cap(r.open[0]))
			}
		}
	}
}
