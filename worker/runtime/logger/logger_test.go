package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func testOutput(t testing.TB, dir string, size int64, files int) *output {
	t.Helper()
	o, err := openOutput(settings{dir: dir, size: size, files: files})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.close() })
	return o
}

// readAll gives the records of all files, oldest first, and the files' sizes.
func readAll(t testing.TB, dir string) (records []string, sizes []int64) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, current+"*"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(files)
	slices.Reverse(files)
	for _, file := range files {
		body, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, int64(len(body)))
		for line := range strings.Lines(string(body)) {
			if !strings.HasSuffix(line, "\n") {
				t.Fatalf("%s ends within a record: %q", file, line)
			}
			records = append(records, strings.TrimSuffix(line, "\n"))
		}
	}
	return records, sizes
}

func TestLines_AnyChunks_GiveTheTextBack(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		o := testOutput(t, dir, 1<<30, 1)
		l := newLines(o, "stdout")
		o.stamps.now = func() time.Time { return time.Unix(0, 1) }
		long := rapid.Custom(func(t *rapid.T) []byte { return bytes.Repeat([]byte("x"), rapid.IntRange(0, 3*maxLine).Draw(t, "n")) })
		short := rapid.SliceOfN(rapid.SampledFrom([]byte("ab\n")), 0, 20)
		var all []byte
		for range rapid.IntRange(0, 8).Draw(rt, "chunks") {
			chunk := rapid.OneOf(long, short).Draw(rt, "chunk")
			all = append(all, chunk...)
			l.write(chunk)
			if len(l.partial) > maxLine {
				rt.Fatalf("%d bytes are held", len(l.partial))
			}
		}
		l.end()
		o.flush()
		records, _ := readAll(t, dir)
		var got strings.Builder
		for i, record := range records {
			text, ok := strings.CutPrefix(record, time.Unix(0, int64(i+1)).UTC().Format(timeLayout)+" stdout ")
			if !ok || len(text) < 2 || len(text) > 2+maxLine {
				rt.Fatalf("record %.60q", record)
			}
			got.WriteString(text[2:])
			if text[0] == 'F' {
				got.WriteByte('\n')
			}
		}
		want := string(all)
		if want != "" && !strings.HasSuffix(want, "\n") {
			want += "\n"
		}
		if got.String() != want {
			rt.Fatalf("%d bytes came back of %d", got.Len(), len(want))
		}
	})
}

func TestStamps_AnyClock_AreItsTimeAndGrow(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		clock := time.Unix(1_700_000_000, rapid.Int64Range(0, 1e9-1).Draw(rt, "begin"))
		s := newStamps()
		s.now = func() time.Time { return clock }
		before := time.Time{}
		for range rapid.IntRange(1, 20).Draw(rt, "reads") {
			step := rapid.OneOf(rapid.Int64Range(-10, 10), rapid.Int64Range(-2e6, 2e6), rapid.Int64Range(-5e9, 5e9)).Draw(rt, "step")
			clock = clock.Add(time.Duration(step))
			s.tick()
			for i := range rapid.IntRange(1, 300).Draw(rt, "lines") {
				text := string(s.next())
				got, err := time.Parse(timeLayout, text)
				if err != nil || len(text) != len(timeLayout) {
					rt.Fatalf("%q: %v", text, err)
				}
				setBack := i == 0 && before.Sub(clock) > time.Duration(maxAhead)
				if !got.After(before) && !setBack {
					rt.Fatalf("%s after %s", text, before)
				}
				if off := got.Sub(clock); off < 0 || off > time.Duration(maxAhead)+time.Duration(300) {
					rt.Fatalf("%s is %s from the clock", text, off)
				}
				before = got
			}
		}
	})
}

func TestOutput_FullFiles_RotatesAndKeepsTheYoungest(t *testing.T) {
	dir := t.TempDir()
	o := testOutput(t, dir, 1<<10, 3)
	l := newLines(o, "stderr")
	for i := range 1000 {
		l.write([]byte(strings.Repeat("x", i%50) + "\n"))
		if i%7 == 0 {
			o.flush()
		}
	}
	o.flush()
	records, sizes := readAll(t, dir)
	if len(sizes) != 3 || slices.Max(sizes) > 1<<10 {
		t.Errorf("files of %v bytes, want three of at most 1024", sizes)
	}
	if last := records[len(records)-1]; !strings.HasSuffix(last, " stderr F "+strings.Repeat("x", 999%50)) {
		t.Errorf("the last record is %q", last)
	}
	if !slices.IsSorted(records) {
		t.Error("records are not in the order of time")
	}
}

func TestOutput_DiskFull_DropsCountsAndGoesOn(t *testing.T) {
	dir := t.TempDir()
	o := testOutput(t, dir, 1<<20, 2)
	l := newLines(o, "stdout")
	l.write([]byte("before\n"))
	o.flush()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("no /dev/full")
	}
	good := o.file
	o.file = full
	for range 3 {
		l.write([]byte("lost\n"))
		o.flush()
	}
	full.Close()
	o.file = good
	l.write([]byte("after\n"))
	o.flush()
	records, _ := readAll(t, dir)
	if len(records) != 3 || !strings.Contains(records[1], "dropped 3 lines") || !strings.HasSuffix(records[2], "after") {
		t.Errorf("records are %q", records)
	}
}

// build gives the command, as it is shipped.
func build(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "logger")
	cmd := exec.Command("go", "build", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

func TestLogger_AsTheShimRunsIt_KeepsBothStreamsToTheirEnd(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "logs")
	cmd := exec.Command(build(t), "files", "2", "dir", dir, "size", "bogus")
	outR, outW, _ := os.Pipe()
	errR, errW, _ := os.Pipe()
	readyR, readyW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles = []*os.File{outR, errR, readyW}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range []*os.File{outR, errR, readyW} {
		f.Close()
	}
	if n, err := readyR.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Fatalf("ready: %d, %v; want the end of the file", n, err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil { // does not end it
		t.Fatal(err)
	}
	text := strings.Repeat("0123456789\n", 20_000) // far more than a pipe holds: it reads on
	if _, err := outW.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if _, err := errW.WriteString("the end"); err != nil {
		t.Fatal(err)
	}
	outW.Close()
	errW.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	records, _ := readAll(t, dir)
	if len(records) != 20_001 || !slices.ContainsFunc(records, func(r string) bool { return strings.HasSuffix(r, " stderr F the end") }) {
		t.Errorf("%d records, the last %q", len(records), records[len(records)-1])
	}
}

func TestInit_Command_CodeAndSignalsPassThrough(t *testing.T) {
	path := build(t)
	for _, c := range []struct {
		args []string
		want int
	}{
		{[]string{"sh", "-c", "exit 7"}, 7},
		{[]string{"sh", "-c", "kill -TERM $$; sleep 9"}, 143},
		{[]string{"sh", "-c", "trap 'exit 3' USR1; kill -USR1 $PPID; while :; do sleep 0.01; done"}, 3},
		{[]string{"no-such-program"}, 127},
		{[]string{"/etc"}, 126},
		{nil, 127},
	} {
		cmd := exec.Command(path, append([]string{"init"}, c.args...)...)
		err := cmd.Run()
		if got := cmd.ProcessState.ExitCode(); got != c.want {
			t.Errorf("%q: exit code %d (%v), want %d", c.args, got, err, c.want)
		}
	}
}
