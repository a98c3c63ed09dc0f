// Command whoami is the demo service: a tiny HTTP server that says which replica answered.
//
//	/               hostname, task, node, addresses, version and the request as it arrived; with ?wait=2s after that time
//	/tiny           204, and in its header who it is and who asked: what a benchmark asks for
//	/healthz        200 "ok", or 503 after /unhealthy
//	/slow?ms=N      answers after N milliseconds
//	/exit?code=N    ends the process
//	/unhealthy      makes /healthz fail from now on
//	/call?url=U     fetches U from here
//	/resolve?name=N the addresses of N; ?address=A the names of A
//	/bytes?n=N      N bytes;  /count says how many the request's body has
//
// It listens on port 80 (or $PORT) and ends cleanly on SIGTERM, after the requests under way. On the same port it answers UDP
// datagrams, and with SCTP=1 in its environment SCTP messages.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

// longestSlow bounds /slow.
const longestSlow = 10 * time.Minute

func main() {
	if err := run(); err != nil {
		log.Print(err)
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	port := os.Getenv("PORT")
	if port == "" {
		port = "80"
	}
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	at := l.Addr().(*net.TCPAddr)
	udp, err := net.ListenUDP("udp", &net.UDPAddr{Port: at.Port})
	if err != nil {
		return err
	}
	defer udp.Close()
	go echoUDP(udp)
	if os.Getenv("SCTP") != "" {
		go echoSCTP(ctx, uint16(at.Port))
	}
	srv := &http.Server{Handler: handler(), ReadHeaderTimeout: 10 * time.Second}
	log.Printf("whoami %s listens on %s", version(), l.Addr())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	if err := srv.Shutdown(context.Background()); err != nil {
		return err
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	log.Print("stopped")
	return nil
}

func version() string {
	if v := os.Getenv("WHOAMI_VERSION"); v != "" {
		return v
	}
	return "dev"
}

func handler() http.Handler {
	var unhealthy atomic.Bool
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, r *http.Request) {
		wait, err := time.ParseDuration(cmp.Or(r.FormValue("wait"), "0s"))
		answerAfter(w, r, wait, err)
	})
	mux.HandleFunc("/tiny", tiny())
	mux.HandleFunc("/call", call)
	mux.HandleFunc("/resolve", resolve)
	mux.HandleFunc("/bytes", send)
	mux.HandleFunc("/count", count)
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		if unhealthy.Load() {
			http.Error(w, "unhealthy", http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("/unhealthy", func(w http.ResponseWriter, _ *http.Request) {
		unhealthy.Store(true)
		_, _ = fmt.Fprintln(w, "unhealthy from now on")
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		ms, err := strconv.Atoi(r.FormValue("ms"))
		answerAfter(w, r, time.Duration(ms)*time.Millisecond, err)
	})
	mux.HandleFunc("/exit", func(w http.ResponseWriter, r *http.Request) {
		code, err := strconv.Atoi(r.FormValue("code"))
		if err != nil || code < 0 || code > 255 {
			http.Error(w, "code: want 0 to 255", http.StatusBadRequest)
			return
		}
		_, _ = fmt.Fprintf(w, "exit %d\n", code)
		_ = http.NewResponseController(w).Flush()
		log.Printf("exit %d as asked", code)
		os.Exit(code)
	})
	return mux
}

// answerAfter says who this is after a time.
func answerAfter(w http.ResponseWriter, r *http.Request, wait time.Duration, err error) {
	if err != nil || wait < 0 || wait > longestSlow {
		http.Error(w, fmt.Sprintf("want a time of at most %s", longestSlow), http.StatusBadRequest)
		return
	}
	select {
	case <-time.After(wait):
		identity(w, r)
	case <-r.Context().Done():
	}
}

// tiny answers at the least cost.
func tiny() http.HandlerFunc {
	host, _ := os.Hostname()
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Hostname", host)
		w.Header().Set("Client", r.RemoteAddr)
		w.WriteHeader(http.StatusNoContent)
	}
}

func identity(w http.ResponseWriter, r *http.Request) {
	host, _ := os.Hostname()
	_, _ = fmt.Fprintf(w, "Version: %s\nHostname: %s\nTask: %s\nNode: %s\n", version(), host, os.Getenv("TASK"), os.Getenv("NODE"))
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		_, _ = fmt.Fprintf(w, "IP: %s\n", a)
	}
	_, _ = fmt.Fprintf(w, "RemoteAddr: %s\n%s %s %s\nHost: %s\n", r.RemoteAddr, r.Method, r.URL.RequestURI(), r.Proto, r.Host)
	_ = r.Header.Write(w)
}
