// Command whoami is the demo service: a tiny HTTP server that says which replica answered.
//
//	/               hostname, task, node, addresses, version and the request as it arrived; with ?wait=2s after that time
//	/tiny           204, and in its header who it is and who asked: what a benchmark asks for
//	/healthz        200 "ok", or 503 while it is unhealthy; /unhealthy and /healthy switch it
//	/readyz         200 "ready", or 503 while it is not ready, or unhealthy; /unready and /ready switch it
//	/note?text=T    writes a line with T to its log
//	/slow?ms=N      answers after N milliseconds
//	/exit?code=N    ends the process
//	/call?url=U     fetches U from here
//	/resolve?name=N the addresses of N; ?address=A the names of A
//	/bytes?n=N      N bytes;  /count says how many the request's body has
//
// It listens on port 80 (or $PORT) and ends cleanly on SIGTERM, after the requests under way. On the same port it answers UDP
// datagrams, calls of grpc.health.v1.Health/Check (the services "", "live" and, as /readyz says, "ready") without TLS, and with
// SCTP=1 in its environment SCTP messages. Its log says "SIGTERM" and "stopped" when it is stopped.
//
// Its environment makes it a version that is no good:
//
//	HEALTHY_AFTER=3s    unhealthy, and not ready, for so long after its start; never: for ever
//	CRASH_AFTER=3s      ends with exit code 1 so long after its start
//	LISTEN_AFTER=3s     does not listen before
//
// Called with arguments it is what health checks and hooks run beside the server, also as /bin/sh -c "ARGUMENTS":
//
//	get PATH    asks the server in this container; says what it answers, and is a success if that is 200
//	hang        never ends, and ignores SIGTERM
//	flood       writes as fast as it can, for ever
//	leak        leaves a process behind, in a session of its own, and succeeds
//	sleep TIME  succeeds after that time
//	exit N      ends with that code
//
// The images around it are in e2e/image: whoami:v1, v2, v3 and latest, which differ in what they say of themselves; whoami:crash (CRASH_AFTER=3s),
// whoami:sick (HEALTHY_AFTER=never), and whoami:health, which has a HEALTHCHECK of its own: get /healthz every second, 2 retries.
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
	"syscall"
	"time"
)

// longestSlow bounds /slow.
const longestSlow = 10 * time.Minute

func main() {
	if args, ok := command(os.Args); ok {
		os.Exit(runCommand(args))
	}
	if err := run(); err != nil {
		log.Print(err)
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	h, err := newHealth()
	if err != nil {
		return err
	}
	port := serverPort()
	if !sleepFor(ctx, "LISTEN_AFTER") {
		return nil
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
	go func() {
		if os.Getenv("CRASH_AFTER") != "" && sleepFor(ctx, "CRASH_AFTER") {
			log.Print("crashes, as its environment says")
			os.Exit(1)
		}
	}()
	srv := &http.Server{Handler: handler(h), ReadHeaderTimeout: 10 * time.Second, Protocols: new(http.Protocols)}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true) // for gRPC
	log.Printf("whoami %s listens on %s", version(), l.Addr())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		log.Print("SIGTERM")
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

func serverPort() string { return cmp.Or(os.Getenv("PORT"), "80") }

// sleepFor waits for the time of an environment variable, none if it is not set; false when ctx ended first. What is no time
// counts as one that is over: the variable is a test's own.
func sleepFor(ctx context.Context, variable string) bool {
	wait, _ := time.ParseDuration(os.Getenv(variable))
	select {
	case <-time.After(wait):
		return true
	case <-ctx.Done():
		return false
	}
}

func version() string {
	if v := os.Getenv("WHOAMI_VERSION"); v != "" {
		return v
	}
	return "dev"
}

func handler(h *health) http.Handler {
	mux := http.NewServeMux()
	h.register(mux)
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, r *http.Request) {
		wait, err := time.ParseDuration(cmp.Or(r.FormValue("wait"), "0s"))
		answerAfter(w, r, wait, err)
	})
	mux.HandleFunc("/tiny", tiny())
	mux.HandleFunc("/call", call)
	mux.HandleFunc("/resolve", resolve)
	mux.HandleFunc("/bytes", send)
	mux.HandleFunc("/count", count)
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
