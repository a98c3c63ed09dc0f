package node_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
)

// TestTraffic_WhatFailsIsSeen_WhatMayBeSentAgainIs: the load that rollouts are judged by tells a lost request from one that a
// client sends again.
func TestTraffic_WhatFailsIsSeen_WhatMayBeSentAgainIs(t *testing.T) {
	for _, c := range []struct {
		name string
		kind int
		// every second answer
		breaks func(net.Conn)
		lost   bool
	}{
		{"ClosedAfterTheAnswer", overKept, nil, false},
		{"ReusedAndClosedBeforeAnyByte", overKept, func(conn net.Conn) { _ = conn.Close() }, false},
		{"ReusedAndClosedWithinTheAnswer", overKept, func(conn net.Conn) {
			_, _ = conn.Write([]byte("HTTP/1.1 204 "))
			_ = conn.Close()
		}, true},
		{"NewAndClosedBeforeAnyByte", overNew, func(conn net.Conn) { _ = conn.Close() }, true},
		{"NewAndReset", overNew, func(conn net.Conn) {
			_ = conn.(*net.TCPConn).SetLinger(0)
			_ = conn.Close()
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var asked atomic.Int64
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if asked.Add(1)%2 == 0 {
					if c.breaks != nil {
						conn, _, err := http.NewResponseController(w).Hijack()
						if err != nil {
							t.Error(err)
							return
						}
						c.breaks(conn)
						return
					}
					w.Header().Set("Connection", "close")
				}
				w.WriteHeader(http.StatusNoContent)
			}))
			defer server.Close()
			ctx, cancel := context.WithCancel(context.Background())
			x := &traffic{bases: []string{server.URL}, cancel: cancel}
			x.all.Go(func() { x.work(ctx, source{name: "client", dial: (&net.Dialer{}).DialContext}, c.kind, 0) })
			until(t, func() error {
				if n := x.sent(); n < 20 {
					return fmt.Errorf("%d requests have succeeded", n)
				}
				return nil
			})
			cancel()
			x.all.Wait()
			if lost := len(x.broken) > 0; lost != c.lost {
				t.Errorf("%d of %d requests failed, want some: %t; %v", len(x.broken), asked.Load(), c.lost, x.broken)
			}
		})
	}
}
