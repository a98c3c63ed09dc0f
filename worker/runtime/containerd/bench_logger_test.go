package containerd_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/cio"

	"github.com/swarmd/swarmd/worker/runtime/containerd"
)

const (
	// loggedLine is a line's length with its newline, loggedBytes how much a round writes.
	loggedLine  = 100
	loggedBytes = 200_000_000
	// loggedWithin is when all of it has to be in the file.
	loggedWithin = 2 * time.Minute
)

// BenchmarkLogger writes 200 MB of lines of 100 bytes to a container's standard output, in turns: one container of the
// Runtime's, whose lines our logger stamps and rotates at the default sizes, and one with cio.LogFile, which has the shim
// copy the bytes to one file. A round ends when the last line is in the file. The writer makes one write a line, as
// programs that do not buffer, or one for 64 KB, which no longer bounds the rate. CPU is that of everything: writer,
// shim, logger. Ratios are of rates, so that more is better.
func BenchmarkLogger(b *testing.B) {
	requireRoot(b)
	usage := accountCPU(b)
	child := shared.open(b)
	config := configure(b, child)
	r, _ := open(b, config)
	importImage(b, r)
	raw := newRawLoop(b, r, config)
	for _, writes := range []struct {
		name  string
		lines int
	}{{"write=line", 1}, {"write=64KB", 64 << 10 / loggedLine}} {
		b.Run(writes.name, func(b *testing.B) {
			var ours, files spent
			for i := range b.N {
				id := fmt.Sprintf("log-%d-%d-%d", writes.lines, b.N, i)
				l := logThrough(b, r, id)
				ours.add(usage, func() { l.flood(b, writes.lines) })
				l.remove(b)
				l = logToFile(b, raw, id+"-file")
				files.add(usage, func() { l.flood(b, writes.lines) })
				l.remove(b)
			}
			const mb = loggedBytes / 1e6
			b.ReportMetric(0, "ns/op")
			for name, side := range map[string]*spent{"logger": &ours, "file": &files} {
				b.ReportMetric(mb/median(side.time).Seconds(), name+"-MB/s")
				b.ReportMetric(median(side.cpu).Seconds()*1000/mb, name+"-cpu-ms/MB")
			}
			rates := ratios(files.time, ours.time)
			b.ReportMetric(median(rates), "rate-ratio")
			b.ReportMetric(slices.Min(rates), "rate-ratio-worst")
			b.ReportMetric(median(ratios(ours.cpu, files.cpu)), "cpu-ratio")
		})
	}
}

// logged is a container that waits while others write to its standard output.
type logged struct {
	pid  uint32
	dir  string // of its log alone
	file string
	end  func() error
}

func logThrough(b *testing.B, r *containerd.Runtime, id string) logged {
	b.Helper()
	ctx := context.Background()
	if err := r.Create(ctx, benchSpec(id)); err != nil {
		b.Fatal(err)
	}
	pid, err := r.Start(ctx, id)
	if err != nil {
		b.Fatal(err)
	}
	dir := r.LogDir(id)
	return logged{pid: pid, dir: dir, file: filepath.Join(dir, "current.log"), end: func() error { return r.Remove(ctx, id) }}
}

func logToFile(b *testing.B, raw *rawLoop, id string) logged {
	b.Helper()
	dir := filepath.Join(raw.logs, id)
	file := filepath.Join(dir, "log")
	task, end, err := raw.startWith(context.Background(), id, cio.LogFile(file))
	if err != nil {
		b.Fatal(err)
	}
	return logged{pid: task.Pid(), dir: dir, file: file, end: end}
}

func (l logged) remove(b *testing.B) {
	b.Helper()
	if err := l.end(); err != nil {
		b.Fatal(err)
	}
	if err := os.RemoveAll(l.dir); err != nil {
		b.Fatal(err)
	}
}

// flood writes loggedBytes, so many lines at once, and returns when the last one is in the file.
func (l logged) flood(b *testing.B, lines int) {
	out, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/1", l.pid), os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer out.Close()
	chunk := []byte(strings.Repeat(strings.Repeat("x", loggedLine-1)+"\n", lines))
	for left := loggedBytes; left > 0; left -= len(chunk) {
		if _, err := out.Write(chunk); err != nil {
			b.Fatal(err)
		}
	}
	const last = "the last line\n"
	if _, err := io.WriteString(out, last); err != nil {
		b.Fatal(err)
	}
	for until := time.Now().Add(loggedWithin); !endsWith(l.file, last); {
		if time.Now().After(until) {
			b.Fatalf("%s does not end with the last line", l.file)
		}
		time.Sleep(time.Millisecond)
	}
}

func endsWith(path, text string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false // within a rotation
	}
	defer f.Close()
	end := make([]byte, len(text))
	info, err := f.Stat()
	if err != nil || info.Size() < int64(len(end)) {
		return false
	}
	_, err = f.ReadAt(end, info.Size()-int64(len(end)))
	return err == nil && bytes.Equal(end, []byte(text))
}
