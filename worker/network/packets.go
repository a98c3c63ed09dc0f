package network

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// maxPacket is the largest UDP payload.
	maxPacket = 65507
	// packetIdle ends a client's flow after which nothing came back.
	packetIdle = 60 * time.Second
)

// relayPackets answers clients on loopback: one socket to the container a client, at most maxRelayed.
func relayPackets(ctx context.Context, in net.PacketConn, to netip.AddrPort) error {
	var (
		mu    sync.Mutex
		flows = map[string]net.Conn{}
		wg    sync.WaitGroup
	)
	defer func() {
		mu.Lock()
		for _, c := range flows {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	}()
	buf := make([]byte, maxPacket)
	for {
		n, client, err := in.ReadFrom(buf)
		if err != nil {
			return err
		}
		mu.Lock()
		out, known := flows[client.String()]
		if !known && len(flows) < maxRelayed && ctx.Err() == nil {
			if out, err = net.Dial("udp4", to.String()); err != nil {
				mu.Unlock()
				continue
			}
			flows[client.String()] = out
			wg.Go(func() {
				answer(in, out, client)
				mu.Lock()
				delete(flows, client.String())
				mu.Unlock()
			})
		}
		mu.Unlock()
		if out != nil {
			_, _ = out.Write(buf[:n])
		}
	}
}

func answer(in net.PacketConn, out net.Conn, client net.Addr) {
	defer out.Close()
	buf := make([]byte, maxPacket)
	for {
		_ = out.SetReadDeadline(time.Now().Add(packetIdle))
		n, err := out.Read(buf)
		if err != nil {
			return
		}
		if _, err := in.WriteTo(buf[:n], client); err != nil {
			return
		}
	}
}
