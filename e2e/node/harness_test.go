// Package node_test runs the real binaries with real containers on hosts made of namespaces. It needs root and runc,
// and the binaries and the image of `make build image`.
package node_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/swarmd/swarmd/e2e/lab"
)

func TestMain(m *testing.M) {
	lab.Dispatch()
	os.Exit(m.Run())
}

const (
	// patience bounds each wait. It is generous: nothing here judges speed.
	patience = 60 * time.Second
	port     = "2377"
)

// cluster is a lab with swarmd on its hosts; the first is the manager.
type cluster struct {
	t   *testing.T
	lab *lab.Lab
	// flags that swarmd is started with.
	flags []string
	// via is the host whose swarmd is asked; a manager.
	via int
}

func artifact(t *testing.T, path string) string {
	t.Helper()
	abs, err := filepath.Abs(filepath.Join("..", "..", path))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(abs); err != nil {
		t.Fatalf("%v; run make build image", err)
	}
	return abs
}

// newHosts makes hosts that run swarmd and belong to no cluster.
func newHosts(t *testing.T, hosts int, flags ...string) *cluster {
	t.Helper()
	c := newBareHosts(t, hosts, flags...)
	for _, h := range c.lab.Hosts() {
		c.start(h)
	}
	return c
}

// newBareHosts makes hosts that run nothing.
func newBareHosts(t *testing.T, hosts int, flags ...string) *cluster {
	t.Helper()
	return newHostsOf(t, hosts, artifact(t, "bin/swarmd"), flags...)
}

// newHostsOf makes hosts that run nothing, for a swarmd at a path.
func newHostsOf(t *testing.T, hosts int, swarmd string, flags ...string) *cluster {
	t.Helper()
	return newHostsWith(t, lab.Config{Hosts: hosts, Swarmd: swarmd}, flags...)
}

// newHostsWith makes hosts that run nothing; cfg says what is special about their lab.
func newHostsWith(t *testing.T, cfg lab.Config, flags ...string) *cluster {
	t.Helper()
	if cfg.Swarmd == "" {
		cfg.Swarmd = artifact(t, "bin/swarmd")
	}
	if os.Geteuid() != 0 {
		t.Skip("namespaces and containers need root")
	}
	if _, err := exec.LookPath("runc"); err != nil {
		t.Skip("runc is not installed; make setup installs it")
	}
	artifact(t, "bin/swarmctl")
	artifact(t, "build/whoami.tar")
	dir, err := os.MkdirTemp("", "swm") // short: socket paths have at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	cfg.Dir = dir
	l, err := lab.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, lab: l, flags: flags, via: 1}
	t.Cleanup(func() {
		if t.Failed() {
			c.tails()
		}
		if err := l.Close(); err != nil {
			t.Error("close the lab:", err)
		}
		if lab.Mounted(dir) {
			t.Errorf("something below %s is still mounted", dir)
		}
		if err := processOf(dir); err != nil {
			t.Error("after the lab was closed:", err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return c
}

// newCluster makes a cluster with a manager and workers, the demo image on each.
func newCluster(t *testing.T, hosts int, flags ...string) *cluster {
	t.Helper()
	c := newHosts(t, hosts, flags...)
	c.form(t, hosts)
	return c
}

// form makes a cluster of hosts that run swarmd: a manager and workers, the demo image on each. Tests look at where tasks are, so none
// is moved for balance.
func (c *cluster) form(t *testing.T, hosts int) {
	t.Helper()
	c.ok(t, 1, "init", "--no-rebalance", "--advertise-addr", c.addr(1))
	for i := 2; i <= hosts; i++ {
		c.join(t, i)
	}
	for i := 1; i <= hosts; i++ {
		c.load(t, i)
	}
	c.nodesReady(t, hosts)
}

func (c *cluster) join(t *testing.T, host int) {
	t.Helper()
	c.ok(t, host, "join", "--token", c.token(t), c.addr(c.via)+":"+port)
}

func (c *cluster) load(t *testing.T, host int) {
	t.Helper()
	c.ok(t, host, "image", "load", artifact(t, "build/whoami.tar"))
}

func (c *cluster) token(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(c.ok(t, c.via, "join-token", "-q", "worker"))
}

func (c *cluster) start(h *lab.Host) {
	c.t.Helper()
	if err := errors.Join(h.StartSwarmd(c.flags...), h.Ready(patience)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) host(i int) *lab.Host { return c.lab.Hosts()[i-1] }
func (c *cluster) addr(i int) string    { return c.host(i).Addr.String() }

// ctl runs swarmctl against the swarmd of a host.
func (c *cluster) ctl(host int, args ...string) (stdout, stderr string, code int) {
	return c.run(context.Background(), host, args...)
}

func (c *cluster) run(ctx context.Context, host int, args ...string) (stdout, stderr string, code int) {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, artifact(c.t, "bin/swarmctl"), append([]string{"--host", "unix://" + c.host(host).Socket()}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return "", err.Error(), -1
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// ok runs swarmctl and wants it to succeed.
func (c *cluster) ok(t *testing.T, host int, args ...string) string {
	t.Helper()
	out, errs, code := c.ctl(host, args...)
	if code != 0 {
		t.Fatalf("swarmctl %s on node-%d: exit %d\n%s%s", strings.Join(args, " "), host, code, out, errs)
	}
	return out
}

// refused runs swarmctl and wants it to fail with exit code 1 and an error that has all the words.
func (c *cluster) refused(t *testing.T, host int, words []string, args ...string) string {
	t.Helper()
	out, errs, code := c.ctl(host, args...)
	t.Logf("swarmctl %s\n%s", strings.Join(args, " "), errs)
	if code != 1 {
		t.Errorf("swarmctl %s: exit %d, want 1\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	wantWords(t, errs, words...)
	return errs
}

func wantWords(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%q does not say %q", text, w)
		}
	}
}

// task is one of `task ls --format json`.
type task struct {
	ID, Name, Service, Image, Node, State, DesiredState, Error, Message, Address string
	Slot                                                                         int
	ExitCode                                                                     *int
}

func (x task) runs() bool { return x.State == "running" && x.DesiredState == "running" }

func (c *cluster) allTasks(t *testing.T) []task {
	t.Helper()
	var out []task
	if err := json.Unmarshal([]byte(c.ok(t, c.via, "task", "ls", "--format", "json")), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// tasks are those of a service, ended ones too.
func (c *cluster) tasks(t *testing.T, service string) []task {
	t.Helper()
	return slices.DeleteFunc(c.allTasks(t), func(x task) bool { return x.Service != service })
}

func (c *cluster) running(t *testing.T, service string) []task {
	t.Helper()
	return slices.DeleteFunc(c.tasks(t, service), func(x task) bool { return !x.runs() })
}

func describe(tasks []task) string {
	var b strings.Builder
	for _, x := range tasks {
		fmt.Fprintf(&b, "%s %s on %q: %s, to be %s %s %s\n", x.ID, x.Name, x.Node, x.State, x.DesiredState, x.Error, x.Message)
	}
	return b.String()
}

// runningAre waits until exactly n tasks of the service run, nothing else of it lives, and the containers on the hosts that are on
// are just those.
func (c *cluster) runningAre(t *testing.T, service string, n int) []task {
	t.Helper()
	var out []task
	until(t, func() error {
		all := c.tasks(t, service)
		out = slices.DeleteFunc(slices.Clone(all), func(x task) bool { return !x.runs() })
		live := 0
		for _, h := range c.lab.Hosts() {
			for id := range h.Containers() {
				if slices.ContainsFunc(all, func(x task) bool { return x.ID == id }) {
					live++
				}
			}
		}
		if len(out) != n || live != n {
			return fmt.Errorf("%d tasks of %s run in %d containers, want %d:\n%s", len(out), service, live, n, describe(all))
		}
		return nil
	})
	return out
}

// nodes maps hostname to state.
func (c *cluster) nodes(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for line := range strings.Lines(c.ok(t, c.via, "node", "ls", "--format", "{{.Hostname}} {{.State}}")) {
		name, state, _ := strings.Cut(strings.TrimSpace(line), " ")
		out[name] = state
	}
	return out
}

func (c *cluster) nodesReady(t *testing.T, n int) {
	t.Helper()
	until(t, func() error {
		ready := 0
		nodes := c.nodes(t)
		for _, state := range nodes {
			if state == "ready" {
				ready++
			}
		}
		if ready != n {
			return fmt.Errorf("nodes %v, want %d ready", nodes, n)
		}
		return nil
	})
}

func (c *cluster) nodeIs(t *testing.T, name, state string) {
	t.Helper()
	until(t, func() error {
		if got := c.nodes(t)[name]; got != state {
			return fmt.Errorf("%s is %q, want %q", name, got, state)
		}
		return nil
	})
}

// create makes a service of the demo image and waits until it has settled.
func (c *cluster) create(t *testing.T, name string, replicas int, flags ...string) []task {
	t.Helper()
	args := append([]string{"service", "create", "--name", name, "--replicas", fmt.Sprint(replicas), "--update-monitor", "500ms"}, flags...)
	c.ok(t, c.via, append(args, "whoami:v1")...)
	return c.runningAre(t, name, replicas)
}

func (c *cluster) remove(t *testing.T, name string) {
	t.Helper()
	c.ok(t, c.via, "service", "rm", name)
}

func (c *cluster) hostOf(t *testing.T, x task) *lab.Host {
	t.Helper()
	for _, h := range c.lab.Hosts() {
		if h.Name == x.Node {
			return h
		}
	}
	t.Fatalf("task %s runs on no host of the lab: %q", x.ID, x.Node)
	return nil
}

// pid of a task's first process, as seen from outside. One that has just been started may not be seen to have begun.
func (c *cluster) pid(t *testing.T, x task) int {
	t.Helper()
	var pids []int
	until(t, func() error {
		if pids = c.hostOf(t, x).Containers()[x.ID]; len(pids) == 0 {
			return fmt.Errorf("task %s has no process on %s", x.ID, x.Node)
		}
		return nil
	})
	return slices.Min(pids)
}

// pids of all containers, by task.
func (c *cluster) pids() map[string][]int {
	out := map[string][]int{}
	for _, h := range c.lab.Hosts() {
		for id, p := range h.Containers() {
			out[id] = p
		}
	}
	return out
}

// root is the root directory of a task's container, as seen from outside.
func (c *cluster) root(t *testing.T, x task) string {
	t.Helper()
	return fmt.Sprintf("/proc/%d/root", c.pid(t, x))
}

type dialer func(ctx context.Context, network, addr string) (net.Conn, error)

func get(dial dialer, url string) (string, error) {
	client := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: 5 * time.Second}
	r, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, r.Status)
	}
	return string(body), err
}

// get asks as a client outside the cluster.
func (c *cluster) get(t *testing.T, url string) map[string]string {
	t.Helper()
	return c.ask(t, c.lab.Dial, url)
}

func (c *cluster) ask(t *testing.T, dial dialer, url string) map[string]string {
	t.Helper()
	var body string
	until(t, func() (err error) { body, err = get(dial, url); return err })
	out := map[string]string{}
	for line := range strings.Lines(body) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), ": "); ok {
			out[k] = v
		}
	}
	return out
}

// from dials from inside a host.
func from(h *lab.Host) dialer {
	return func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		err = h.Inside(func() (err error) { conn, err = (&net.Dialer{}).DialContext(ctx, network, addr); return err })
		return conn, err
	}
}

// until repeats fn until it succeeds; after long patience the test fails with its last error.
func until(t *testing.T, fn func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := fn()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not after %s: %v", patience, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (c *cluster) signal(t *testing.T, pid int, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		t.Fatalf("signal %d: %v", pid, err)
	}
}

// tails logs the ends of the hosts' logs.
func (c *cluster) tails() {
	for _, h := range c.lab.Hosts() {
		data, _ := os.ReadFile(h.Log())
		if lines := strings.Split(strings.TrimSpace(string(data)), "\n"); len(data) > 0 {
			c.t.Logf("%s of %s:\n%s", filepath.Base(h.Log()), h.Name, strings.Join(lines[max(0, len(lines)-25):], "\n"))
		}
	}
}
