package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// health is what the server says of itself.
type health struct {
	unhealthy, unready atomic.Bool
	from               time.Time // when it begins to be healthy; zero = never
}

// newHealth reads HEALTHY_AFTER.
func newHealth() (*health, error) {
	h := &health{}
	after := os.Getenv("HEALTHY_AFTER")
	if after == "never" {
		return h, nil
	}
	var wait time.Duration
	if after != "" {
		var err error
		if wait, err = time.ParseDuration(after); err != nil {
			return nil, fmt.Errorf("HEALTHY_AFTER: %w", err)
		}
	}
	h.from = time.Now().Add(wait)
	return h, nil
}

func (h *health) healthy() bool {
	return !h.unhealthy.Load() && !h.from.IsZero() && !time.Now().Before(h.from)
}

func (h *health) ready() bool { return h.healthy() && !h.unready.Load() }

func (h *health) register(mux *http.ServeMux) {
	say := func(path string, good func() bool, yes, no string) {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			if !good() {
				http.Error(w, no, http.StatusServiceUnavailable)
				return
			}
			_, _ = fmt.Fprintln(w, yes)
		})
	}
	say("/healthz", h.healthy, "ok", "unhealthy")
	say("/readyz", h.ready, "ready", "not ready")
	turn := func(path string, what *atomic.Bool, to bool) {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			what.Store(to)
			_, _ = fmt.Fprintln(w, path[1:]+" from now on")
		})
	}
	turn("/unhealthy", &h.unhealthy, true)
	turn("/healthy", &h.unhealthy, false)
	turn("/unready", &h.unready, true)
	turn("/ready", &h.unready, false)
	mux.HandleFunc("/note", func(_ http.ResponseWriter, r *http.Request) { log.Printf("note: %q", r.FormValue("text")) })
	mux.HandleFunc("/grpc.health.v1.Health/Check", h.check)
}

// Answers of grpc.health.v1, and the codes of gRPC.
const (
	serving, notServing         = 1, 2
	codeOK, codeNotFound        = "0", "5"
	frameHeader, longestRequest = 5, 1 << 10
)

// check is the one gRPC method that is needed: a message is a length after a byte of flags, and the request's only field is the
// service's name.
func (h *health) check(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, longestRequest))
	if err != nil || len(body) < frameHeader || r.ProtoMajor != 2 {
		http.Error(w, "this is for gRPC", http.StatusBadRequest)
		return
	}
	service, code := "", codeOK
	if message := body[frameHeader:]; len(message) > 1 {
		service = string(message[2:])
	}
	good := h.healthy
	switch service {
	case "", "live":
	case "ready":
		good = h.ready
	default:
		code = codeNotFound
	}
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status")
	if code == codeOK {
		answer := []byte{0, 0, 0, 0, 0, 1 << 3, serving}
		if !good() {
			answer[6] = notServing
		}
		binary.BigEndian.PutUint32(answer[1:], uint32(len(answer)-frameHeader))
		_, _ = w.Write(answer)
	}
	w.Header().Set("Grpc-Status", code)
}

// command finds what to do beside being the server, called as whoami ARGUMENTS or sh -c "ARGUMENTS".
func command(argv []string) ([]string, bool) {
	args := argv[1:]
	if len(args) == 2 && args[0] == "-c" {
		args = strings.Fields(args[1])
		if len(args) > 0 && strings.TrimPrefix(args[0], "/") == "whoami" {
			args = args[1:]
		}
	}
	return args, len(args) > 0
}

// runCommand gives the exit code.
func runCommand(args []string) int {
	argument := ""
	if len(args) > 1 {
		argument = args[1]
	}
	var err error
	switch args[0] {
	case "get":
		err = ask(argument)
	case "hang":
		hang()
	case "flood":
		flood()
	case "leak":
		err = leak()
	case "sleep":
		var d time.Duration
		if d, err = time.ParseDuration(argument); err == nil {
			time.Sleep(d)
		}
	case "exit":
		var code int
		if code, err = strconv.Atoi(argument); err == nil {
			return code
		}
	default:
		err = fmt.Errorf("unknown command %q", args[0])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "whoami:", err)
		return 1
	}
	return 0
}

// ask says what the server in this container answers.
func ask(path string) error {
	r, err := http.Get("http://127.0.0.1:" + serverPort() + path)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if _, err := io.Copy(os.Stdout, r.Body); err != nil {
		return err
	}
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("the server says %s", r.Status)
	}
	return nil
}
