package health

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	grpchealth "google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/durationpb"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime"
)

func execProbe(interval, timeout time.Duration, command ...string) *swarmpb.Probe {
	return &swarmpb.Probe{
		Kind: &swarmpb.Probe_Exec{Exec: &swarmpb.ExecProbe{Command: command}}, Interval: durationpb.New(interval), Timeout: durationpb.New(timeout),
	}
}

func TestWatch_Unhealthy_EndsAndSaysWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sick atomic.Bool
		asked := 0
		p := New(Config{Exec: func(context.Context, string, runtime.ExecSpec) (runtime.ExecResult, error) {
			asked++
			if sick.Load() {
				return runtime.ExecResult{Code: 1, Output: []byte("no\xffgood\n")}, nil
			}
			return runtime.ExecResult{Output: []byte("fine")}, nil
		}})
		time.AfterFunc(55*time.Second, func() { sick.Store(true) })
		checks := Of(&swarmpb.ContainerSpec{Health: execProbe(10*time.Second, time.Second, "check")}, nil)
		var told []State
		start := time.Now()
		p.Watch(t.Context(), Task{ID: "t", Checks: checks, Started: start}, func(s State) { told = append(told, s) })
		if len(told) != 2 || told[0].Live != healthy || !told[0].Ready || told[1].Live != unhealthy || told[1].Ready {
			t.Fatalf("told %+v", told)
		}
		if want := "unhealthy: cmd check: exit code 1: no\uFFFDgood"; told[1].Reason != want {
			t.Errorf("reason %q, want %q", told[1].Reason, want)
		}
		if asked != 9 || time.Since(start) != 80*time.Second {
			t.Errorf("asked %d times in %s", asked, time.Since(start))
		}
	})
}

func TestWatch_AfterARestart_SpreadAndSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 95*time.Second)
		defer cancel()
		var first time.Duration
		start, asked := time.Now(), 0
		p := New(Config{Jitter: func() float64 { return 0.5 }, Exec: func(context.Context, string, runtime.ExecSpec) (runtime.ExecResult, error) {
			if asked++; asked == 1 {
				first = time.Since(start)
			}
			return runtime.ExecResult{}, nil
		}})
		checks := Of(&swarmpb.ContainerSpec{Health: execProbe(30*time.Second, time.Second, "check")}, nil)
		from := StateOf(&swarmpb.HealthStatus{State: healthy}, true)
		p.Watch(ctx, Task{ID: "t", Checks: checks, Started: start, From: from}, func(s State) { t.Errorf("told %+v", s) })
		if first != 15*time.Second || asked != 3 {
			t.Errorf("first after %s, %d times in all", first, asked)
		}
	})
}

// Tasks whose probes hang neither keep a task from being asked whose probe does not, nor are they spared.
func TestWatch_ProbesThatHang_DoNotStarveOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		p := New(Config{Execs: 2, Exec: func(ctx context.Context, id string, _ runtime.ExecSpec) (runtime.ExecResult, error) {
			if id == "good" {
				return runtime.ExecResult{}, nil
			}
			<-ctx.Done()
			return runtime.ExecResult{Output: []byte("hanging")}, ctx.Err()
		}})
		var watching sync.WaitGroup
		var mu sync.Mutex
		reasons := map[string]string{}
		ready := time.Duration(0)
		start := time.Now()
		for i := range 20 {
			checks := Of(&swarmpb.ContainerSpec{Health: execProbe(30*time.Second, 30*time.Second, "check")}, nil)
			id := fmt.Sprint("hangs-", i)
			if i == 19 {
				id = "good"
				synctest.Wait() // behind all others
			}
			watching.Go(func() {
				p.Watch(ctx, Task{ID: id, Checks: checks, Started: start}, func(s State) {
					mu.Lock()
					defer mu.Unlock()
					if s.Ready {
						ready = time.Since(start)
					}
					reasons[id] = s.Reason
				})
			})
		}
		watching.Wait()
		if ready == 0 || ready > 11*time.Second {
			t.Errorf("the good one was ready after %s", ready)
		}
		if len(reasons) != 20 || reasons["good"] != "" {
			t.Errorf("%d tasks have told something; the good one %q", len(reasons), reasons["good"])
		}
		if want := "unhealthy: cmd check: no answer within 30s: hanging"; reasons["hangs-0"] != want {
			t.Errorf("reason %q, want %q", reasons["hangs-0"], want)
		}
	})
}

func TestWatch_HostAtFault_NoAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		asked := 0
		p := New(Config{Exec: func(context.Context, string, runtime.ExecSpec) (runtime.ExecResult, error) {
			asked++
			return runtime.ExecResult{}, errors.New("fork: cannot allocate memory")
		}})
		checks := Of(&swarmpb.ContainerSpec{Health: execProbe(time.Second, time.Second, "check")}, nil)
		var told []State // once, as it has never answered: one sees what it waits for
		p.Watch(ctx, Task{ID: "t", Checks: checks, Started: time.Now()}, func(s State) { told = append(told, s) })
		if len(told) != 1 || told[0].Live != starting || told[0].Failing != 0 || told[0].Output != "it cannot be asked: fork: cannot allocate memory" {
			t.Errorf("told %+v", told)
		}
		asked = 0
		started := time.Now()
		well, end := context.WithTimeout(t.Context(), time.Hour)
		defer end()
		p.Watch(well, Task{ID: "t", Checks: checks, Started: started, From: State{Live: healthy, Ready: true, WasReady: true}}, func(s State) { t.Errorf("told %+v", s) })
		if asked < 1000 || asked > 3700 {
			t.Errorf("asked %d times in an hour", asked)
		}
	})
}

// askOnce asks a server on the loopback.
func askOnce(t *testing.T, timeout time.Duration, probe *swarmpb.Probe) Answer {
	t.Helper()
	p := New(Config{Dial: func(ctx context.Context, _ string, port uint16) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	}})
	probe.Timeout = durationpb.New(timeout)
	a, err := p.Ask(t.Context(), "t", newCheck(probe))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func portOf(l net.Listener) uint32 { return uint32(l.Addr().(*net.TCPAddr).Port) }

func TestAsk_HTTP(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/moved":
			http.Redirect(w, r, "/bad", http.StatusFound)
		case "/bad":
			http.Error(w, "the database is away", http.StatusServiceUnavailable)
		case "/flood":
			for {
				if _, err := io.WriteString(w, strings.Repeat("x", 1<<16)); err != nil {
					return
				}
			}
		case "/hang":
			<-r.Context().Done()
		case "/header":
			w.Header().Set("Big", strings.Repeat("x", 1<<20))
		default:
			fmt.Fprintf(w, "%s of %s", r.URL, r.Host)
		}
	})
	plain, secure := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	defer plain.Close()
	defer secure.Close()
	for _, c := range []struct {
		server *httptest.Server
		path   string
		host   string
		ok     bool
		text   string
	}{
		{plain, "/ok?a=b", "", true, "200 OK: /ok?a=b of localhost"},
		{plain, "", "web.example", true, "200 OK: / of web.example"},
		{secure, "/ok", "web.example", true, "200 OK: /ok of web.example"},
		{plain, "/moved", "", true, "302 Found"},
		{plain, "/bad", "", false, "503 Service Unavailable: the database is away"},
		{plain, "/flood", "", true, "200 OK: xxx"},
		{plain, "/hang", "", false, "no answer within 300ms"},
		{plain, "/header", "", false, ""},
	} {
		a := askOnce(t, 300*time.Millisecond, &swarmpb.Probe{Kind: &swarmpb.Probe_Http{Http: &swarmpb.HTTPProbe{
			Port: portOf(c.server.Listener), Path: c.path, Host: c.host, Https: c.server == secure,
		}}})
		if a.OK != c.ok || !strings.HasPrefix(a.Text, c.text) || len(a.Text) > 2*MaxOutput {
			t.Errorf("%s: %t, %.80q, want %t, %q", c.path, a.OK, a.Text, c.ok, c.text)
		}
	}
}

func TestAsk_TCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	probe := &swarmpb.Probe{Kind: &swarmpb.Probe_Tcp{Tcp: &swarmpb.TCPProbe{Port: portOf(l)}}}
	if a := askOnce(t, 5*time.Second, probe); !a.OK {
		t.Errorf("with a listener: %+v", a)
	}
	_ = l.Close()
	if a := askOnce(t, 5*time.Second, probe); a.OK || !strings.Contains(a.Text, "connection refused") {
		t.Errorf("without: %+v", a)
	}
}

func TestAsk_GRPC(t *testing.T) {
	certificate := httptest.NewTLSServer(nil)
	defer certificate.Close()
	for _, secure := range []bool{false, true} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var options []grpc.ServerOption
		if secure {
			options = append(options, grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: certificate.TLS.Certificates})))
		}
		server, service := grpc.NewServer(options...), grpchealth.NewServer()
		grpc_health_v1.RegisterHealthServer(server, service)
		service.SetServingStatus("db", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
		go func() { _ = server.Serve(l) }()
		for name, want := range map[string]string{"": "SERVING", "db": "NOT_SERVING", "none": "NotFound: unknown service"} {
			a := askOnce(t, 5*time.Second, &swarmpb.Probe{Kind: &swarmpb.Probe_Grpc{Grpc: &swarmpb.GRPCProbe{Port: portOf(l), Service: name, Tls: secure}}})
			if a.OK != (name == "") || a.Text != want {
				t.Errorf("service %q, TLS %t: %+v, want %q", name, secure, a, want)
			}
		}
		server.Stop()
		if a := askOnce(t, 5*time.Second, &swarmpb.Probe{Kind: &swarmpb.Probe_Grpc{Grpc: &swarmpb.GRPCProbe{Port: portOf(l)}}}); a.OK || !strings.Contains(a.Text, "refused") {
			t.Errorf("nobody listens: %+v", a)
		}
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	if a := askOnce(t, 300*time.Millisecond, &swarmpb.Probe{Kind: &swarmpb.Probe_Grpc{Grpc: &swarmpb.GRPCProbe{Port: portOf(silent)}}}); a.OK || !strings.HasPrefix(a.Text, "no answer within") {
		t.Errorf("one that says nothing: %+v", a)
	}
}

// A server may speak before it answers: RFC 9110 15.2.
func TestAsk_HTTP_InterimResponses_AreNotTheAnswer(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusEarlyHints)
		_, _ = io.WriteString(w, "fine")
	}))
	defer s.Close()
	a := askOnce(t, 5*time.Second, &swarmpb.Probe{Kind: &swarmpb.Probe_Http{Http: &swarmpb.HTTPProbe{Port: portOf(s.Listener)}}})
	if !a.OK || a.Text != "200 OK: fine" {
		t.Errorf("%+v", a)
	}
}
