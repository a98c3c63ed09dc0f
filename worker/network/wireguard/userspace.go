package wireguard

import (
	"encoding/hex"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// greeting is the interval of keepalives that is set for a moment: WireGuard sends the first one at once.
const greeting = 25 * time.Second

// firstMTU is the device's until Configure: the least that IPv6 works with.
const firstMTU = 1280

// userspace is WireGuard in this process.
type userspace struct{ device *device.Device }

func openUserspace(cfg Config) (engine, error) {
	if err := portFree(cfg.Port); err != nil {
		return nil, err
	}
	tunnel, err := tun.CreateTUN(Link, firstMTU)
	if err != nil {
		return nil, fmt.Errorf("%w: the kernel has none (load the module wireguard, which every kernel from 5.6 can have), and the tun device "+
			"that would do instead cannot be made: %w", ErrUnsupported, err)
	}
	logger := &device.Logger{Verbosef: device.DiscardLogf, Errorf: func(format string, args ...any) {
		// For an operator Check says what is wrong; this is about packets, as many as there are peers.
		cfg.Logger.Debug("userspace WireGuard", slog.String("message", fmt.Sprintf(format, args...)))
	}}
	return &userspace{device.NewDevice(tunnel, conn.NewDefaultBind(), logger)}, nil
}

// portFree finds out early what the device would only log.
func portFree(port uint16) error {
	c, err := net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
	if err != nil {
		return fmt.Errorf("UDP port %d of the tunnel: %w; free it", port, err)
	}
	return c.Close()
}

func (u *userspace) kind() string { return KindUserspace }

func (u *userspace) configure(c change) error {
	var text strings.Builder
	if c.private != nil {
		fmt.Fprintf(&text, "private_key=%s\n", hex.EncodeToString(c.private[:]))
	}
	if c.port != 0 {
		fmt.Fprintf(&text, "listen_port=%d\n", c.port)
	}
	for _, p := range c.peers {
		p.userspace(&text)
	}
	if text.Len() == 0 {
		return nil
	}
	if err := u.device.IpcSet(text.String()); err != nil {
		return fmt.Errorf("configure %s: %w", Link, err)
	}
	return nil
}

func (p peerChange) userspace(text *strings.Builder) {
	fmt.Fprintf(text, "public_key=%s\n", hex.EncodeToString(p.key[:]))
	if p.remove {
		text.WriteString("remove=true\n")
		return
	}
	if !p.address.IsValid() {
		text.WriteString("update_only=true\n")
	}
	if p.endpoint.IsValid() {
		fmt.Fprintf(text, "endpoint=%s\n", p.endpoint)
	}
	if p.address.IsValid() {
		fmt.Fprintf(text, "replace_allowed_ips=true\nallowed_ip=%s/%d\n", p.address, p.address.BitLen())
	}
	if p.greet {
		fmt.Fprintf(text, "persistent_keepalive_interval=%d\n", int(greeting/time.Second))
	}
	if p.quiet {
		text.WriteString("persistent_keepalive_interval=0\n")
	}
}

// peers: nobody but this process changes them.
func (u *userspace) peers() (held map[key]Peer, ok bool, err error) { return nil, false, nil }

func (u *userspace) alive() bool {
	select {
	case <-u.device.Wait():
		return false // its link was removed
	default:
		return true
	}
}

func (u *userspace) close() { u.device.Close() }
