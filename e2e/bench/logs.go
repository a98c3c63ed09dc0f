package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swarmd/swarmd/e2e/measure"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime/logs"
)

const (
	// targetFollow is in MB of text a second.
	targetFollow = 30
	// A round writes floodLines of floodLine bytes. The writer is at most floodAhead writes of floodWrite lines, 9 MB, ahead of
	// the reader: what a node keeps of a log is 30 MB with the head of each line.
	floodLine, floodLines = 100, 2_000_000
	floodWrite            = 3000
	floodAhead            = 30
	floodFirst            = 1_000_000_000 // ten digits
	// localPause is how often the local reader looks for more.
	localPause = time.Millisecond
)

// logs follows the log of a task on another host: 200 MB from a write to the task's standard output to swarmctl's, in
// turns with a reader of the same files on the task's own host. The writer goes as fast as the reader.
func (b *bench) logs(ctx context.Context) error {
	c, _, err := measure.Found(ctx, b.cfg)
	if err != nil {
		return err
	}
	return c.Close(b.logsOn(ctx, c))
}

func (b *bench) logsOn(ctx context.Context, c *measure.Cluster) error {
	worker, _, err := c.Join(ctx)
	if err != nil {
		return err
	}
	spec := measure.Service("flood", 1)
	spec.Task.Placement = &swarmpb.Placement{Constraints: []string{"node.role==worker"}}
	if err := c.Create(ctx, spec); err != nil {
		return err
	}
	w, err := c.Watch(ctx, "flood")
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Until((*measure.Picture).Settled); err != nil {
		return err
	}
	var task string
	for task = range w.RunningTasks() {
	}
	pid, err := worker.FirstProcess(task)
	if err != nil {
		return err
	}
	stdout, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/1", pid), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer stdout.Close()
	var followed, local cost
	for range b.rounds {
		if err := b.follow(ctx, c, worker, task, stdout, &followed); err != nil {
			return fmt.Errorf("follow: %w", err)
		}
		if err := readLocally(ctx, c, worker, task, stdout, &local); err != nil {
			return fmt.Errorf("read locally: %w", err)
		}
	}
	report(&followed, &local)
	return nil
}

func report(followed, local *cost) {
	const mb = floodLine * floodLines / 1e6
	rate := func(d time.Duration) float64 { return mb / d.Seconds() }
	each := func(d time.Duration) float64 { return d.Seconds() * 1000 / mb }
	fmt.Printf("follow: median %.1f, worst %.1f MB/s of text (target %d), %.1f ms CPU a MB over both hosts, writer and swarmctl\n",
		rate(followed.time.Median()), rate(followed.time.Worst()), targetFollow, each(followed.cpu.Median()))
	fmt.Printf("a reader of the files on the task's host: median %.1f MB/s, %.1f ms CPU a MB\n", rate(local.time.Median()), each(local.cpu.Median()))
	fmt.Printf("ratio of the rates %.2f\n", local.time.Median().Seconds()/followed.time.Median().Seconds())
}

// everything is the CPU of both hosts, of this process and of those it has waited for.
func everything(c *measure.Cluster, worker *measure.Host) (time.Duration, error) {
	manager, err := c.Manager().CPU()
	if err != nil {
		return 0, err
	}
	other, err := worker.CPU()
	var ru unix.Rusage
	if unix.Getrusage(unix.RUSAGE_CHILDREN, &ru) == nil {
		other += time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
	}
	return manager + other + measure.OwnCPU(), err
}

func (b *bench) follow(ctx context.Context, c *measure.Cluster, worker *measure.Host, task string, stdout io.Writer, spent *cost) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	before, err := everything(c, worker)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(filepath.Dir(b.cfg.Swarmd), "swarmctl"), "--host", "unix://"+c.Manager().Socket(),
		"service", "logs", "-f", "--raw", "--tail", "0", task)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	took, err := flood(ctx, stdout, bufio.NewReaderSize(out, 1<<20))
	cancel()
	_ = cmd.Wait() // it is told to end
	if err != nil {
		return err
	}
	after, err := everything(c, worker)
	spent.add(took, after-before)
	fmt.Fprintf(os.Stderr, "  follow: %s (load %s)\n", short(took), measure.Load())
	return err
}

func readLocally(ctx context.Context, c *measure.Cluster, worker *measure.Host, task string, stdout io.Writer, spent *cost) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	before, err := everything(c, worker)
	if err != nil {
		return err
	}
	none := uint64(0)
	r, err := logs.NewReader(filepath.Join(worker.Dir, "data", "logs", task), logs.Options{Tail: &none})
	if err != nil {
		return err
	}
	defer r.Close()
	took, err := flood(ctx, stdout, bufio.NewReaderSize(&texts{ctx: ctx, reader: r}, 1<<20))
	if err != nil {
		return err
	}
	after, err := everything(c, worker)
	spent.add(took, after-before)
	fmt.Fprintf(os.Stderr, "  local:  %s (load %s)\n", short(took), measure.Load())
	return err
}

// texts are the lines of a log without their heads.
type texts struct {
	ctx     context.Context
	reader  *logs.Reader
	records []byte
	out     []byte
}

func (t *texts) Read(p []byte) (int, error) {
	const head = len("2026-01-02T15:04:05.000000000Z stdout F ")
	for len(t.out) == 0 {
		records, _, err := t.reader.Read(t.records[:0], 64<<10)
		if err != nil {
			return 0, err
		}
		t.records = records
		for line := range bytes.Lines(records) {
			t.out = append(t.out, line[head:]...)
		}
		if len(records) > 0 {
			break
		}
		select {
		case <-t.ctx.Done():
			return 0, t.ctx.Err()
		case <-time.After(localPause):
		}
	}
	n := copy(p, t.out)
	t.out = t.out[:copy(t.out, t.out[n:])]
	return n, nil
}

// flood writes numbered lines and has each of them come back, once and in order. It returns how long that took.
func flood(ctx context.Context, stdout io.Writer, in *bufio.Reader) (time.Duration, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := awaitReader(ctx, stdout, in); err != nil {
		return 0, err
	}
	begin := time.Now()
	places := make(chan struct{}, floodAhead)
	over := make(chan struct{})
	go func() {
		defer close(over)
		if err := writeAll(ctx, stdout, places); err != nil {
			cancel(err)
		}
	}()
	defer func() { cancel(nil); <-over }()
	for n := 0; n < floodLines; {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return 0, errors.Join(fmt.Errorf("after %d lines: %w", n, err), context.Cause(ctx))
		}
		if n == 0 && string(line) == ready {
			continue
		}
		got, err := strconv.Atoi(string(line[:min(10, len(line))]))
		if err != nil || got != floodFirst+n || len(line) != floodLine {
			return 0, fmt.Errorf("line %d is %.20q", n, line)
		}
		if n++; n%floodWrite == 0 {
			<-places
		}
	}
	return time.Since(begin), nil
}

const ready = "ready\n"

// awaitReader returns when what is written is read: who follows from the end sees nothing of before.
func awaitReader(ctx context.Context, stdout io.Writer, in *bufio.Reader) error {
	seen := make(chan error, 1)
	go func() {
		_, err := in.ReadSlice('\n')
		seen <- err
	}()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := io.WriteString(stdout, ready); err != nil {
			return err
		}
		select {
		case err := <-seen:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func writeAll(ctx context.Context, stdout io.Writer, places chan<- struct{}) error {
	pad := strings.Repeat("x", floodLine-11) + "\n"
	chunk := make([]byte, 0, floodWrite*floodLine)
	for n := 0; n < floodLines; {
		chunk = chunk[:0]
		for range min(floodWrite, floodLines-n) {
			chunk = append(strconv.AppendInt(chunk, int64(floodFirst+n), 10), pad...)
			n++
		}
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		if _, err := stdout.Write(chunk); err != nil {
			return err
		}
	}
	return nil
}
