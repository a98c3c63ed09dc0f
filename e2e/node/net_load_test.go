package node_test

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/swarmd/swarmd/e2e/lab"
)

// source is where requests come from: a client outside or a task.
type source struct {
	name string
	dial dialer
	// seen is the address that a replica must see; empty: any.
	seen string
}

// request is what became of one.
type request struct {
	who
	source, url  string
	reused       bool
	began, ended time.Time
	err          error
}

// load sends requests from all sources to all URLs in turns, half of them over connections that are kept, until it is stopped or
// has sent as many as it should.
type load struct {
	sources []source
	urls    func() []string
	timeout time.Duration

	cancel context.CancelFunc
	all    sync.WaitGroup
	mu     sync.Mutex
	left   int
	done   []request
	// allowed are the times in which requests may fail.
	allowed []window
}

// workersEach is how many requests of each source are under way.
const workersEach = 4

// startLoad starts to send; n bounds the requests, 0: until stop.
func startLoad(t *testing.T, n int, sources []source, urls ...string) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	if n == 0 {
		n = 1 << 30
	}
	l := &load{sources: sources, urls: func() []string { return urls }, timeout: 10 * time.Second, cancel: cancel, left: n}
	for _, s := range sources {
		for i := range workersEach {
			l.all.Go(func() { l.work(ctx, s, i) })
		}
	}
	t.Cleanup(func() { cancel(); l.all.Wait() })
	return l
}

// work is one of a source's clients; every second keeps its connections.
func (l *load) work(ctx context.Context, s source, number int) {
	var mu sync.Mutex
	fresh := map[string]bool{} // local addresses of connections that no request has used yet
	transport := &http.Transport{
		DisableKeepAlives: number%2 == 0, MaxIdleConnsPerHost: 1,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := s.dial(ctx, network, addr)
			if err == nil {
				mu.Lock()
				fresh[conn.LocalAddr().String()] = true
				mu.Unlock()
			}
			return conn, err
		},
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: l.timeout}
	for i := number; ctx.Err() == nil && l.take(); i++ {
		urls := l.urls()
		r := request{source: s.name, url: urls[i%len(urls)], began: time.Now()}
		mu.Lock()
		clear(fresh)
		mu.Unlock()
		r.who, r.err = askTiny(client, r.url)
		r.ended = time.Now()
		mu.Lock()
		r.reused = r.err == nil && len(fresh) == 0
		mu.Unlock()
		if r.err == nil && s.seen != "" && r.Client != s.seen {
			r.err = fmt.Errorf("the replica sees %s as the client, not %s", r.Client, s.seen)
		}
		l.mu.Lock()
		l.done = append(l.done, r)
		l.mu.Unlock()
	}
}

func (l *load) take() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left--
	return l.left >= 0
}

// stop ends it, after the requests under way.
func (l *load) stop() []request {
	l.cancel()
	l.all.Wait()
	return l.done
}

// wait lets it send all that it should.
func (l *load) wait() []request {
	l.all.Wait()
	return l.done
}

// count of requests done by now.
func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.done)
}

// passes waits until so many more requests are done.
func (l *load) passes(t *testing.T, n int) {
	t.Helper()
	goal := l.count() + n
	until(t, func() error {
		if got := l.count(); got < goal {
			return fmt.Errorf("%d of %d requests are done", got, goal)
		}
		return nil
	})
}

// allow lets requests fail that were under way when something was killed, or began within a time after.
func (l *load) allow(killed time.Time, within time.Duration) {
	l.allowed = append(l.allowed, window{from: killed, to: killed.Add(within)})
}

// window is a time in which requests to a killed replica or host may fail.
type window struct{ from, to time.Time }

// failures wants that no request failed, but for those that were under way in one of the windows. It returns how many those were.
func failures(t *testing.T, done []request, allowed ...window) int {
	t.Helper()
	excused, underWay := 0, 0
	var last time.Duration // after what was killed
	var bad []request
	for _, r := range done {
		if r.err == nil {
			continue
		}
		if i := slices.IndexFunc(allowed, func(w window) bool { return r.ended.After(w.from) && r.began.Before(w.to) }); i >= 0 {
			if excused++; r.began.Before(allowed[i].from) {
				underWay++
			} else {
				last = max(last, r.began.Sub(allowed[i].from))
			}
			continue
		}
		bad = append(bad, r)
	}
	for i, r := range bad {
		if i == 10 {
			t.Errorf("... and %d more", len(bad)-i)
			break
		}
		t.Errorf("%s -> %s at %s after %s: %v", r.source, r.url, r.began.Format("15:04:05.000"), r.ended.Sub(r.began).Round(time.Millisecond), r.err)
	}
	if len(done) == 0 {
		t.Error("no request was sent")
	}
	t.Logf("%d requests, %d failed; allowed: %d under way when something was killed, %d that began after, the last %s after", len(done), len(bad)+excused,
		underWay, excused-underWay, last.Round(time.Millisecond))
	return excused
}

// even wants that connections were spread evenly over n replicas, within a share.
func even(t *testing.T, done []request, n int, within float64) {
	t.Helper()
	got := map[string]int{}
	all := 0
	for _, r := range done {
		if r.err == nil && !r.reused {
			got[r.Task]++
			all++
		}
	}
	want := float64(all) / float64(n)
	for task, k := range got {
		if d := float64(k)/want - 1; d < -within || d > within {
			t.Errorf("replica %s has %d connections of %d, want %.0f within %.0f%%", task, k, all, want, within*100)
		}
	}
	if len(got) != n {
		t.Errorf("%d replicas have answered, want %d", len(got), n)
	}
	t.Logf("connections by replica: %s", shares(got))
}

func shares(got map[string]int) string {
	keys := slices.SortedFunc(maps.Keys(got), func(a, b string) int { return cmp.Compare(got[a], got[b]) })
	var b strings.Builder
	for _, k := range keys {
		fmt.Fprintf(&b, "%s %d  ", k[:min(6, len(k))], got[k])
	}
	return b.String()
}

// outside are the clients as sources; their addresses must be seen.
func (c *netCluster) outside() []source {
	var out []source
	for _, x := range c.clients {
		out = append(out, source{x.Name, x.Dial, x.Addr.String()})
	}
	return out
}

// everywhere are the URLs of a published port on each host that is on.
func (c *netCluster) everywhere(port int) []string {
	var out []string
	for _, h := range c.lab.Hosts() {
		out = append(out, url4(h, port, "/tiny"))
	}
	return out
}

// passesSlowly is passes for numbers that take longer than patience.
func (l *load) passesSlowly(t *testing.T, n int) {
	t.Helper()
	for step := 500; n > 0; n -= step {
		l.passes(t, min(step, n))
	}
}

// resolving dials by the names that a task's resolver answers, one of the addresses in turns, as clients of dnsrr do.
func resolving(d *lab.Dialer) dialer {
	var turn atomic.Int64
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		addrs, err := lookup(d, host)
		if err != nil {
			return nil, err
		}
		return d.Dial(ctx, network, net.JoinHostPort(addrs[int(turn.Add(1))%len(addrs)], port))
	}
}
