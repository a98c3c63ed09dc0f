package node_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// say has a task's process write lines, as if by itself: fd is 1 or 2.
func (c *cluster) say(t *testing.T, x task, fd int, lines ...string) {
	t.Helper()
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/%d", c.pid(t, x), fd), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(strings.Join(lines, "\n") + "\n"); err != nil {
		t.Fatal(err)
	}
}

// tap is a swarmctl under way and what it has printed.
type tap struct {
	cmd  *exec.Cmd
	done chan struct{}
	mu   sync.Mutex
	out  map[*tapEnd]*bytes.Buffer
	ends [2]*tapEnd
}

type tapEnd struct{ tap *tap }

func (e *tapEnd) Write(p []byte) (int, error) {
	e.tap.mu.Lock()
	defer e.tap.mu.Unlock()
	return e.tap.out[e].Write(p)
}

// printed are the whole lines of standard output, or standard error.
func (x *tap) printed(stderr bool) []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	end := x.ends[0]
	if stderr {
		end = x.ends[1]
	}
	var out []string
	for line := range strings.Lines(x.out[end].String()) {
		out = append(out, strings.TrimSpace(line))
	}
	return out
}

// tap runs swarmctl in the background, until the test ends.
func (c *cluster) tap(t *testing.T, host int, args ...string) *tap {
	t.Helper()
	x := &tap{done: make(chan struct{}), out: map[*tapEnd]*bytes.Buffer{}}
	for i := range x.ends {
		x.ends[i] = &tapEnd{x}
		x.out[x.ends[i]] = &bytes.Buffer{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	x.cmd = exec.CommandContext(ctx, artifact(t, "bin/swarmctl"), append([]string{"--host", "unix://" + c.host(host).Socket()}, args...)...)
	x.cmd.Stdout, x.cmd.Stderr = x.ends[0], x.ends[1]
	if err := x.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(x.done)
		_ = x.cmd.Wait()
	}()
	t.Cleanup(func() { cancel(); <-x.done })
	return x
}

// wants waits until the tap has printed exactly the lines with that prefix, in that order.
func (x *tap) wants(t *testing.T, prefix string, want []string) {
	t.Helper()
	until(t, func() error {
		var got []string
		for _, line := range x.printed(false) {
			if name, text, ok := strings.Cut(line, "| "); ok && strings.TrimSpace(name) == prefix {
				got = append(got, text)
			}
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("lines of %s are %q, want %q; on standard error %q", prefix, got, want, x.printed(true))
		}
		return nil
	})
}

// tells waits until the tap has printed a line with all the words on standard error.
func (x *tap) tells(t *testing.T, words ...string) {
	t.Helper()
	until(t, func() error {
		for _, line := range x.printed(true) {
			if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
				return nil
			}
		}
		return fmt.Errorf("no line with %q on standard error: %q", words, x.printed(true))
	})
}

func label(x task) string { return x.Name + "@" + x.Node }

func TestLogs_OfTasksOnAllHosts(t *testing.T) {
	t.Parallel()
	c := newManagers(t, 3, 2, nil)
	tasks := c.create(t, "web", 5)
	on := onePerHost(t, c, tasks)
	t.Run("FromAnyManager_EachTaskIsThere_ByTime", func(t *testing.T) {
		var want []string
		for i := range 10 {
			want = append(want, fmt.Sprintf("line %d", i))
			c.say(t, tasks[i%5], 1, want[i])
			time.Sleep(20 * time.Millisecond) // the loggers take the time; this orders them
		}
		for host := 1; host <= 3; host++ {
			until(t, func() error {
				out, errs, code := c.ctl(host, "service", "logs", "web")
				var texts []string
				for line := range strings.Lines(out) {
					_, text, _ := strings.Cut(strings.TrimSpace(line), "| ")
					texts = append(texts, text)
				}
				if code != 0 || !slices.Equal(texts, want) {
					return fmt.Errorf("through %s: exit %d\n%s%s", c.host(host).Name, code, out, errs)
				}
				if n := strings.Count(errs, "listens on"); n != 5 {
					return fmt.Errorf("%d tasks wrote that they listen, want 5:\n%s", n, errs)
				}
				return nil
			})
		}
	})
	t.Run("TailSinceRawAndTask_GiveWhatIsAsked", func(t *testing.T) {
		x := tasks[0]
		if out := c.ok(t, 2, "service", "logs", "--raw", "--tail", "1", x.Name); out != "line 5\n" {
			t.Errorf("the last line is %q", out)
		}
		if out := c.ok(t, 2, "service", "logs", "--since", "1h", "-t", x.ID); strings.Count(out, "\n") != 2 || !strings.HasPrefix(out, "20") {
			t.Errorf("since an hour: %q", out)
		}
		future := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
		if out := c.ok(t, 2, "service", "logs", "--since", future, "web"); out != "" {
			t.Errorf("since the future: %q", out)
		}
		c.refused(t, 2, []string{"nope", "no such service and no such task"}, "service", "logs", "nope")
		c.refused(t, 4, []string{"manager"}, "service", "logs", "web")
	})
	t.Run("TaskHasEnded_ItsLogsAreThere", func(t *testing.T) {
		x := on["node-2"]
		c.signal(t, c.pid(t, x), syscall.SIGKILL)
		until(t, func() error {
			if now := c.running(t, "web"); len(now) != 5 || slices.ContainsFunc(now, func(y task) bool { return y.ID == x.ID }) {
				return errors.New("it has not been replaced:\n" + describe(c.tasks(t, "web")))
			}
			return nil
		})
		if out := c.ok(t, 1, "service", "logs", "--raw", x.ID); strings.Count(out, "line") != 2 {
			t.Errorf("the logs of a task that was killed are %q", out)
		}
	})
	t.Run("Followed_HostsAreLostAndComeBack_NothingIsMissedOrTwice", func(t *testing.T) { logsFollowed(t, c) })
}

// onePerHost wants a task on each host, and returns them by the host's name.
func onePerHost(t *testing.T, c *cluster, tasks []task) map[string]task {
	t.Helper()
	on := map[string]task{}
	for _, x := range tasks {
		on[x.Node] = x
	}
	if len(tasks) != len(c.lab.Hosts()) || len(on) != len(tasks) {
		t.Fatalf("replicas are not one on each host:\n%s", describe(tasks))
	}
	return on
}

// logsFollowed follows 30 tasks on 5 hosts, of which one's swarmd is killed, one is paused and one is powered off.
func logsFollowed(t *testing.T, c *cluster) {
	const replicas = 30
	on := map[string][]task{}
	for _, x := range c.create(t, "talk", replicas) {
		on[x.Node] = append(on[x.Node], x)
	}
	if len(on) != 5 {
		t.Fatalf("replicas are on %d hosts, want 5:\n%s", len(on), describe(c.tasks(t, "talk")))
	}
	followed := c.tap(t, 1, "service", "logs", "-f", "--no-task-ids", "talk")
	said := map[string][]string{}
	write := func(host string) {
		t.Helper()
		for _, x := range on[host] {
			name := label(x)
			text := fmt.Sprintf("%s says %d", name, len(said[name]))
			c.say(t, x, 1, text)
			said[name] = append(said[name], text)
		}
	}
	say := func(hosts ...string) {
		t.Helper()
		for _, h := range hosts {
			write(h)
		}
		for _, h := range hosts {
			for _, x := range on[h] {
				followed.wants(t, label(x), said[label(x)])
			}
		}
	}
	say("node-1", "node-2", "node-3", "node-4", "node-5")

	// What is written while a host's swarmd is gone is there when it is back.
	if err := c.host(2).KillSwarmd(); err != nil {
		t.Fatal(err)
	}
	write("node-2")
	followed.tells(t, "node-2", "no answer")
	if err := c.restart(2); err != nil {
		t.Fatal(err)
	}
	say("node-1", "node-2", "node-5")

	if err := c.host(3).Pause(); err != nil {
		t.Fatal(err)
	}
	if err := c.host(4).PowerOff(); err != nil {
		t.Fatal(err)
	}
	say("node-1")
	followed.tells(t, "node-3", "no answer", "missing from here on")
	followed.tells(t, "node-4", "no answer", "missing from here on")
	say("node-1", "node-2", "node-5")
	// What the lost replicas are replaced by appears by itself.
	until(t, func() error {
		n := 0
		for _, line := range followed.printed(true) {
			if strings.Contains(line, "listens on") {
				n++
			}
		}
		if want := replicas + len(on["node-3"]) + len(on["node-4"]); n < want {
			return fmt.Errorf("%d tasks have said that they listen, want %d: %q", n, want, followed.printed(true))
		}
		return nil
	})
	if err := c.host(3).Resume(); err != nil {
		t.Fatal(err)
	}
	followed.tells(t, "node-3", "answers again")
	say("node-1", "node-2", "node-5")
	select {
	case <-followed.done:
		t.Errorf("it has ended: %q", followed.printed(true))
	default:
	}
	if err := followed.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	<-followed.done
	if code := followed.cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit %d, want 130", code)
	}
}

// TestLogs_Flood: what a task writes at 30 MB/s over many rotations arrives whole at a user on another host.
func TestLogs_Flood(t *testing.T) {
	c := newCluster(t, 2)
	x := c.create(t, "flood", 1, "--constraint", "node.role==worker")[0]
	const (
		lineBytes = 100
		perTick   = 3000 // 300 KB in 10 ms
		lines     = 2_000_000
		first     = 1_000_000_000 // ten digits
	)
	cmd := exec.CommandContext(t.Context(), artifact(t, "bin/swarmctl"), "--host", "unix://"+c.host(1).Socket(), "service", "logs", "-f", "--raw", x.ID)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stdout, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/1", c.pid(t, x)), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer stdout.Close()
	began := time.Now()
	written := make(chan error, 1)
	go func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		pad := strings.Repeat("x", lineBytes-11) + "\n"
		var chunk bytes.Buffer
		for n := 0; n < lines; {
			<-tick.C
			chunk.Reset()
			for range min(perTick, lines-n) {
				chunk.Write(strconv.AppendInt(nil, int64(first+n), 10))
				chunk.WriteString(pad)
				n++
			}
			if _, err := stdout.Write(chunk.Bytes()); err != nil {
				written <- err
				return
			}
		}
		t.Logf("wrote %d MB in %s", lines*lineBytes/1_000_000, time.Since(began).Round(time.Millisecond))
		written <- nil
	}()
	scanner := bufio.NewScanner(out)
	for n := range lines {
		if !scanner.Scan() {
			t.Fatalf("it ended after %d lines: %v %s", n, scanner.Err(), errs.String())
		}
		want := strconv.AppendInt(nil, int64(first+n), 10)
		if got := scanner.Bytes(); len(got) != lineBytes-1 || !bytes.HasPrefix(got, want) {
			t.Fatalf("line %d is %.20q, want %s; on standard error: %s", n, got, want, errs.String())
		}
	}
	took := time.Since(began)
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	t.Logf("read %d MB in %s: %.1f MB/s", lines*lineBytes/1_000_000, took.Round(time.Millisecond), lines*lineBytes/1e6/took.Seconds())
	var kept int64 // what was read first was rotated away meanwhile
	files, err := os.ReadDir(filepath.Join(c.host(2).Dir, "data/logs", x.ID))
	for _, file := range files {
		if info, err := file.Info(); err == nil {
			kept += info.Size()
		}
	}
	if err != nil || len(files) != 3 || kept > 3*10<<20 {
		t.Errorf("of the log %d MB in %d files are kept, %v; want at most 30 MB in 3", kept>>20, len(files), err)
	}
	for i := 1; i <= 2; i++ {
		rss := c.swarmdRSS(t, i)
		t.Logf("swarmd of %s had %d MB", c.host(i).Name, rss>>20)
		if rss > 200<<20 {
			t.Errorf("swarmd of %s had %d MB", c.host(i).Name, rss>>20)
		}
	}
	_ = cmd.Process.Signal(syscall.SIGINT)
	_ = cmd.Wait()
}

// swarmdRSS is the most resident memory that a host's swarmd has had, in bytes.
func (c *cluster) swarmdRSS(t *testing.T, host int) int64 {
	t.Helper()
	out, code, err := c.host(host).Run("/bin/sh", "-c", `for p in /proc/[0-9]*; do
	[ "$(tr '\0' ' ' < $p/cmdline | cut -d' ' -f1 | sed 's,.*/,,')" = swarmd ] && awk '/VmHWM/ {print $2}' $p/status; done; true`)
	if err != nil || code != 0 {
		t.Fatalf("read memory: exit %d %s %v", code, out, err)
	}
	var most int64
	for line := range strings.Lines(out) {
		var kb int64
		if _, err := fmt.Sscan(line, &kb); err == nil {
			most = max(most, kb<<10)
		}
	}
	if most == 0 {
		t.Fatalf("no swarmd on %s", c.host(host).Name)
	}
	return most
}
