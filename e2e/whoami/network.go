package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/swarmd/swarmd/e2e/sctp"
)

const (
	// callPatience bounds /call, longestBody /bytes and what /count takes.
	callPatience = 10 * time.Second
	longestBody  = 1 << 30
)

// call fetches ?url= from here and hands on status and body.
func call(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), callPatience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.FormValue("url"), nil)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(req)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer answer.Body.Close()
	w.WriteHeader(answer.StatusCode)
	_, _ = io.Copy(w, answer.Body)
}

// resolve says the addresses of ?name=, or the names of ?address=, one a line, as this container's resolver has them.
func resolve(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), callPatience)
	defer cancel()
	var lines []string
	var err error
	if address := r.FormValue("address"); address != "" {
		lines, err = net.DefaultResolver.LookupAddr(ctx, address)
	} else {
		lines, err = net.DefaultResolver.LookupHost(ctx, r.FormValue("name"))
	}
	if err != nil {
		status := http.StatusBadGateway
		if no, ok := err.(*net.DNSError); ok && no.IsNotFound {
			status = http.StatusNotFound
		}
		http.Error(w, err.Error(), status)
		return
	}
	for _, l := range lines {
		_, _ = fmt.Fprintln(w, l)
	}
}

// send answers with ?n= bytes.
func send(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.ParseInt(r.FormValue("n"), 10, 64)
	if err != nil || n < 0 || n > longestBody {
		http.Error(w, fmt.Sprintf("n: want bytes, at most %d", longestBody), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
	_, _ = io.CopyN(w, zeros{}, n)
}

// zeros never ends.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// count says how many bytes the request's body has.
func count(w http.ResponseWriter, r *http.Request) {
	n, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, longestBody))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	_, _ = fmt.Fprintln(w, n)
}

// echo is what UDP and SCTP answer: who this is, whom it sees as the client, and what came.
func echo(from netip.AddrPort, message []byte) []byte {
	host, _ := os.Hostname()
	return fmt.Appendf(nil, "%s %s %s", host, from, message)
}

// echoUDP answers datagrams until the socket is closed.
func echoUDP(conn *net.UDPConn) {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		_, _ = conn.WriteToUDPAddrPort(echo(netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), buf[:n]), from)
	}
}

// echoSCTP answers on raw sockets, where it may have them.
func echoSCTP(ctx context.Context, port uint16) {
	if err := sctp.Serve(ctx, port, echo); err != nil && ctx.Err() == nil {
		log.Printf("no SCTP: %v", err)
	}
}
