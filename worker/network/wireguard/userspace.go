package wireguard

import (
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// greeting is the interval of keepalives that is set for a moment: WireGuard sends the first one at once.
const greeting = 25 * time.Second

// firstMTU is the device's until Configure: that of the usual underlay.
const firstMTU = 1500 - overhead

// userspace is WireGuard in this process.
type userspace struct {
	device *device.Device
	tunnel *tunnel
}

func openUserspace(cfg Config) (engine, error) {
	tunnel, err := openTunnel()
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("%w: another process has it", err)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: the kernel has none (load the module wireguard, which every kernel from 5.6 can have), and the tun device "+
			"that would do instead cannot be made: %w", ErrUnsupported, err)
	}
	logger := &device.Logger{Verbosef: device.DiscardLogf, Errorf: func(format string, args ...any) {
		// For an operator Check says what is wrong; this is about packets, as many as there are peers.
		cfg.Logger.Debug("userspace WireGuard", slog.String("message", fmt.Sprintf(format, args...)))
	}}
	return &userspace{device: device.NewDevice(tunnel, conn.NewDefaultBind(), logger), tunnel: tunnel}, nil
}

// tunnel is the tun device. It says of itself what WireGuard would watch the link for: that would depend on the thread
// that looks, which may not be in the link's namespace.
type tunnel struct {
	tun.Device
	events chan tun.Event

	mu     sync.Mutex
	size   int
	closed bool
}

func openTunnel() (*tunnel, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq(Link)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", Link, errors.Join(err, unix.Close(fd)))
	}
	device, _, err := tun.CreateUnmonitoredTUNFromFD(fd)
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", Link, errors.Join(err, unix.Close(fd)))
	}
	return &tunnel{Device: device, events: make(chan tun.Event, 1), size: firstMTU}, nil
}

func (t *tunnel) Events() <-chan tun.Event { return t.events }

func (t *tunnel) MTU() (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.size, nil
}

func (t *tunnel) resize(mtu int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || t.size == mtu {
		return
	}
	t.size = mtu
	select {
	case t.events <- tun.EventMTUUpdate:
	default: // the same news is waiting
	}
}

func (t *tunnel) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	close(t.events)
	return t.Device.Close()
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
	if c.port == 0 {
		return nil
	}
	if err := u.device.Up(); err != nil {
		return fmt.Errorf("UDP port %d of the tunnel: %w; free it", c.port, err)
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
		return false // its link was removed, and it has seen that
	default:
		_, err := netlink.LinkByName(Link)
		_, gone := errors.AsType[netlink.LinkNotFoundError](err)
		return !gone
	}
}

// resized says what packets are padded up to.
func (u *userspace) resized(mtu int) { u.tunnel.resize(mtu) }

func (u *userspace) close() { u.device.Close() }
