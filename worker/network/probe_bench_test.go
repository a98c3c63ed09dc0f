package network

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/health"
)

// BenchmarkProbe is what it costs to ask a task from inside its namespace. The server's part is in it.
func BenchmarkProbe(b *testing.B) {
	path := namespaceWithLoopback(b)
	var l net.Listener
	if err := inNamespace(path, func() (err error) { l, err = net.Listen("tcp4", "127.0.0.1:0"); return err }); err != nil {
		b.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	defer func() {
		_ = server.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			b.Error(err)
		}
	}()
	n, task := networkAt(path)
	prober := health.New(health.Config{Dial: n.Dial})
	port := uint32(l.Addr().(*net.TCPAddr).Port)
	for name, probe := range map[string]*swarmpb.Probe{
		"tcp":  {Kind: &swarmpb.Probe_Tcp{Tcp: &swarmpb.TCPProbe{Port: port}}},
		"http": {Kind: &swarmpb.Probe_Http{Http: &swarmpb.HTTPProbe{Port: port}}},
	} {
		check := health.Of(&swarmpb.ContainerSpec{Health: probe}, nil).Live
		b.Run(name, func(b *testing.B) {
			before := processTime(b)
			for b.Loop() {
				if a, err := prober.Ask(context.Background(), task, check); err != nil || !a.OK {
					b.Fatalf("%+v, %v", a, err)
				}
			}
			b.ReportMetric(float64((processTime(b)-before).Microseconds())/1000/float64(b.N), "cpu-ms/op")
		})
	}
}

func processTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
