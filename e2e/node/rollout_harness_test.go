package node_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The kinds of requests that rollouts are seen under.
const (
	overKept = iota // connections that are kept from request to request
	overNew         // a connection each
	slowly          // answers that take slowTime, every second over a connection that is kept
	kinds
)

const slowTime = 2 * time.Second

var kindNames = [kinds]string{"kept", "new", "slow"}

// broken is a request that failed.
type broken struct {
	kind         int
	source, url  string
	began, ended time.Time
	err          error
}

// traffic sends requests of all kinds until it is stopped. It counts what succeeds and remembers what fails, so that a
// million requests cost no memory. A request that a reused connection ended before any byte of the answer is sent again, as
// net/http does by itself (RFC 9112, 9.3.1); nothing else is.
type traffic struct {
	bases []string // http://HOST:PORT
	pace  time.Duration

	cancel      context.CancelFunc
	all         sync.WaitGroup
	count       [kinds]atomic.Int64
	connections atomic.Int64
	mu          sync.Mutex
	broken      []broken
}

// startTraffic sends from all clients to all hosts, at each of the ports.
func (c *netCluster) startTraffic(t *testing.T, ports ...int) *traffic {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	x := &traffic{cancel: cancel, pace: time.Duration(sized(10, 0)) * time.Millisecond}
	for _, port := range ports {
		for _, h := range c.lab.Hosts() {
			x.bases = append(x.bases, url4(h, port, ""))
		}
	}
	workers := [kinds]int{overKept: sized(2, 4), overNew: sized(2, 4), slowly: 2 * len(ports)}
	for _, s := range c.outside() {
		for kind, n := range workers {
			for i := range n {
				x.all.Go(func() { x.work(ctx, s, kind, i) })
			}
		}
	}
	t.Cleanup(func() { cancel(); x.all.Wait() })
	return x
}

func (x *traffic) work(ctx context.Context, s source, kind, number int) {
	transport := &http.Transport{
		DisableKeepAlives: kind == overNew || kind == slowly && number%2 == 0, MaxIdleConnsPerHost: 1,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			x.connections.Add(1)
			return s.dial(ctx, network, addr)
		},
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 10*time.Second + slowTime}
	path := "/tiny"
	if kind == slowly {
		path = fmt.Sprintf("/slow?ms=%d", slowTime.Milliseconds())
	}
	for i := number; ctx.Err() == nil; i++ {
		url := x.bases[i%len(x.bases)] + path
		began := time.Now()
		if _, err := ask(client, url); err != nil {
			x.mu.Lock()
			x.broken = append(x.broken, broken{kind, s.name, url, began, time.Now(), err})
			x.mu.Unlock()
		} else {
			x.count[kind].Add(1)
		}
		pause(ctx, x.pace)
	}
}

// answer is what a replica says of itself; the version is empty where the path does not tell.
type answer struct{ task, version string }

// ask sends one request, which must succeed in whole.
func ask(client *http.Client, url string) (answer, error) {
	r, err := client.Get(url)
	if err != nil {
		return answer{}, err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return answer{}, err
	}
	switch r.StatusCode {
	case http.StatusNoContent:
		return answer{task: r.Header.Get("Hostname")}, nil
	case http.StatusOK:
	default:
		return answer{}, fmt.Errorf("%s: %s", r.Status, strings.TrimSpace(string(body)))
	}
	var out answer
	for line := range strings.Lines(string(body)) {
		switch key, value, _ := strings.Cut(strings.TrimSpace(line), ": "); key {
		case "Hostname":
			out.task = value
		case "Version":
			out.version = value
		}
	}
	if out.task == "" {
		return answer{}, fmt.Errorf("%s: the answer is not a replica's: %q", url, body)
	}
	return out, nil
}

// newConnections is a client with a connection for each request.
func newConnections(dial dialer) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: 5 * time.Second}
}

// sent is how many requests have succeeded.
func (x *traffic) sent() (n int64) {
	for i := range x.count {
		n += x.count[i].Load()
	}
	return n
}

// flows waits until so many more requests have succeeded, some of every kind.
func (x *traffic) flows(t *testing.T, n int64) {
	t.Helper()
	var before [kinds]int64
	for i := range before {
		before[i] = x.count[i].Load()
	}
	goal := x.sent() + n
	for last := x.sent(); last < goal; last = x.sent() { // patience is for each step
		until(t, func() error {
			if got := x.sent(); got < min(last+500, goal) {
				return fmt.Errorf("%d of %d requests have succeeded", got, goal)
			}
			return nil
		})
	}
	until(t, func() error {
		for i := range before {
			if x.count[i].Load() == before[i] {
				return fmt.Errorf("no %s request has succeeded", kindNames[i])
			}
		}
		return nil
	})
}

// stop ends it after the requests under way, and wants that none failed.
func (x *traffic) stop(t *testing.T, what string) {
	t.Helper()
	x.cancel()
	x.all.Wait()
	slices.SortFunc(x.broken, func(a, b broken) int { return a.began.Compare(b.began) })
	for i, r := range x.broken {
		if i == 10 {
			t.Errorf("... and %d more", len(x.broken)-i)
			break
		}
		t.Errorf("%s: %s (%s) -> %s at %s after %s: %v", what, r.source, kindNames[r.kind], r.url, r.began.Format("15:04:05.000"),
			r.ended.Sub(r.began).Round(time.Millisecond), r.err)
	}
	for i := range x.count {
		if x.count[i].Load() == 0 {
			t.Errorf("%s: no %s request has succeeded", what, kindNames[i])
		}
	}
	t.Logf("%s: %d requests (%d over kept connections, %d over new ones, %d of %s), %d connections, %d failed", what, x.sent()+int64(len(x.broken)),
		x.count[overKept].Load(), x.count[overNew].Load(), x.count[slowly].Load(), slowTime, x.connections.Load(), len(x.broken))
}

// number is one from the environment; nothing there: def.
func number(t *testing.T, variable string, def int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return def
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		t.Fatalf("%s=%s: want a number", variable, text)
	}
	return n
}

// rolloutState is what inspect says of the newest update of a service.
type rolloutState struct {
	State, Phase, Strategy, Message string
	Share                           int // in hundredths of a percent
}

func (c *cluster) rollout(t *testing.T, service string) rolloutState {
	t.Helper()
	data, err := json.Marshal(dig(c.inspected(t, "service", service), "progress", "update"))
	if err != nil {
		t.Fatal(err)
	}
	var out rolloutState
	if err := json.Unmarshal(data, &out); err != nil {
		t.Fatalf("%v: %s", err, data)
	}
	return out
}

// rolloutIs waits for a state of the update, and for a phase unless that is empty.
func (c *cluster) rolloutIs(t *testing.T, service, state, phase string) {
	t.Helper()
	until(t, func() error {
		if got := c.rollout(t, service); got.State != state || phase != "" && got.Phase != phase {
			return fmt.Errorf("%s: %+v, want %s %s\n%s", service, got, state, phase, describe(c.tasks(t, service)))
		}
		return nil
	})
}

// allOf waits until exactly n tasks of the service run, all of an image.
func (c *cluster) allOf(t *testing.T, service string, n int, image string) []task {
	t.Helper()
	var out []task
	until(t, func() error {
		out = c.runningAre(t, service, n)
		for _, x := range out {
			if x.Image != image {
				return fmt.Errorf("%s is of %s, want %s", x.Name, x.Image, image)
			}
		}
		return nil
	})
	return out
}

// ofImage are the tasks of an image.
func ofImage(tasks []task, image string) []task {
	return slices.DeleteFunc(slices.Clone(tasks), func(x task) bool { return x.Image != image })
}

// revision is the service's newest.
func (c *cluster) revision(t *testing.T, service string) string {
	t.Helper()
	first, _, _ := strings.Cut(c.ok(t, c.via, "service", "history", "-q", service), "\n")
	return first
}

// done is what a command came to that ran beside the test.
type done struct {
	args      []string
	out, errs string
	code      int
}

func (d done) text() string {
	return fmt.Sprintf("swarmctl %s: exit %d\n%s%s", strings.Join(d.args, " "), d.code, d.out, d.errs)
}

// beside runs swarmctl while the test goes on.
func (c *cluster) beside(host int, args ...string) <-chan done {
	ch := make(chan done, 1)
	go func() {
		out, errs, code := c.ctl(host, args...)
		ch <- done{args, out, errs, code}
	}()
	return ch
}
