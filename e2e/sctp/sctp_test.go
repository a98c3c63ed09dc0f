package sctp

import (
	"context"
	"net/netip"
	"os"
	"testing"
	"time"
)

func TestAsk_AnotherSocketOfThisHostAnswers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("raw sockets need root")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	served := make(chan error, 1)
	serving, stop := context.WithCancel(ctx)
	go func() {
		served <- Serve(serving, 7777, func(from netip.AddrPort, m []byte) []byte { return append([]byte(from.String()+" "), m...) })
	}()
	for _, to := range []string{"127.0.0.1:7777", "[::1]:7777"} {
		addr := netip.MustParseAddrPort(to)
		conn, err := Open(addr.Addr())
		if err != nil {
			t.Fatal(err)
		}
		want := netip.AddrPortFrom(addr.Addr(), 4321).String() + " hello"
		if got, err := Ask(ctx, conn, 4321, addr, []byte("hello")); err != nil || string(got) != want {
			t.Errorf("%s answered %q %v, want %q", to, got, err, want)
		}
		_ = conn.Close()
	}
	stop()
	<-served
}
