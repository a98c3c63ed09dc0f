package wireguard

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"
)

// engine is what encrypts.
type engine interface {
	kind() string
	// configure changes what is not zero: the private key, and peers in this order.
	configure(change) error
	// peers are those that it has, by public key; nil with ok false: it keeps those it was given by itself.
	peers() (held map[key]Peer, ok bool, err error)
	// alive tells whether the link is still this engine's.
	alive() bool
	// resized is told when the link has this MTU.
	resized(mtu int)
	// close ends what lives in this process.
	close()
}

// Device is this node's end of the tunnel. All methods are safe for concurrent use.
type Device struct {
	cfg Config

	mu       sync.Mutex
	closed   bool
	private  key
	engine   engine
	address  netip.Prefix // not valid before Configure
	underlay int
	held     map[key]Peer // as the engine has them
	late     []key        // to be greeted by the timer
	timer    *time.Timer  // nil: none runs
}

// lateness is how long a node waits for another one to greet it.
const lateness = time.Second

// Open makes the device, or takes over the kernel's of a former process, whose sessions go on. It passes nothing before
// Configure and SetPeers.
func Open(cfg Config) (*Device, error) {
	cfg.Port = cmp.Or(cfg.Port, DefaultPort)
	if err := needIPv6(); err != nil {
		return nil, fmt.Errorf("open the tunnel: %w", err)
	}
	private, err := loadKey(cfg)
	if err != nil {
		return nil, fmt.Errorf("open the tunnel: %w", err)
	}
	if err := loadGuard(); err != nil {
		return nil, fmt.Errorf("open the tunnel: %w", err)
	}
	d := &Device{cfg: cfg, private: private}
	if err := d.open(); err != nil {
		return nil, fmt.Errorf("open the tunnel: %w", err)
	}
	return d, nil
}

// open makes the engine with the key and the peers that it had.
func (d *Device) open() error {
	e, err := openKernel(d.cfg)
	if errors.Is(err, errNoKernel) {
		e, err = openUserspace(d.cfg)
	}
	if err != nil {
		return err
	}
	held, _, err := e.peers()
	if err == nil {
		err = e.configure(change{private: &d.private, port: d.cfg.Port})
	}
	if err == nil {
		err = raise(d.cfg.Port)
	}
	if err != nil {
		e.close()
		return err
	}
	d.engine, d.held = e, held
	return nil
}

// PublicKey is the node's, of KeyLength bytes.
func (d *Device) PublicKey() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	public := d.private.public()
	return public[:]
}

// KeyMade is when the node's key was made.
func (d *Device) KeyMade() (time.Time, error) {
	info, err := os.Stat(d.cfg.keyFile())
	if err != nil {
		return time.Time{}, fmt.Errorf("look at the node's key: %w", err)
	}
	return info.ModTime(), nil
}

// Kind is KindKernel or KindUserspace.
func (d *Device) Kind() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.engine.kind()
}

// Link is the name of the device.
func (d *Device) Link() string { return Link }

// MTU is the largest packet that the tunnel takes on an underlay with the given MTU. It is the same whether endpoints
// have IPv4 or IPv6: a cluster may have both, and its networks one MTU.
func (d *Device) MTU(underlay int) int { return underlay - overhead }

// Configure gives the device its address in the tunnel, with the range that all nodes' addresses are in (see Address), and
// the MTU that goes with the underlay's. It is idempotent, and repairs what Check does.
func (d *Device) Configure(address netip.Prefix, underlay int) error {
	if !address.Addr().Is6() || underlay <= overhead {
		return fmt.Errorf("configure the tunnel: address %s, MTU of the underlay %d: want an address of IPv6 with its range, and more than %d", address, underlay, overhead)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errClosed
	}
	if d.address.IsValid() && d.address.Masked() != address.Masked() {
		if err := unguard(d.address.Masked()); err != nil {
			return fmt.Errorf("configure the tunnel: %w", err)
		}
	}
	d.address, d.underlay = address, underlay
	if err := d.check(); err != nil {
		return fmt.Errorf("configure the tunnel: %w", err)
	}
	return nil
}

// SetPeers makes these the peers, all of them. Sessions with peers that stay as they are go on. One that cannot be a peer
// is left out, and in the error; the others are set all the same.
func (d *Device) SetPeers(peers []Peer) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errClosed
	}
	want, wrong := chosen(peers, d.held, d.private.public())
	if err := d.set(want); err != nil {
		return errors.Join(fmt.Errorf("set the tunnel's peers: %w", err), wrong)
	}
	return wrong
}

// set brings what the engine holds to want.
func (d *Device) set(want map[key]Peer) error {
	first, then, late := difference(d.private.public(), d.held, want)
	if len(first.peers) == 0 {
		return nil
	}
	if err := d.engine.configure(first); err != nil {
		return err
	}
	d.held = want
	if len(late) > 0 {
		d.late = append(d.late, late...)
		if d.timer == nil {
			d.timer = time.AfterFunc(lateness, d.greetLate)
		}
	}
	return d.engine.configure(then)
}

// greetLate greets those whose turn it was to greet us. Where they have done so it is one small packet.
func (d *Device) greetLate() {
	d.mu.Lock()
	defer d.mu.Unlock()
	late := d.late
	d.late, d.timer = nil, nil
	var greet, quiet change
	for _, k := range late {
		if _, still := d.held[k]; still {
			greet.peers = append(greet.peers, peerChange{key: k, greet: true})
			quiet.peers = append(quiet.peers, peerChange{key: k, quiet: true})
		}
	}
	if d.closed || len(greet.peers) == 0 {
		return
	}
	if err := errors.Join(d.engine.configure(greet), d.engine.configure(quiet)); err != nil {
		d.cfg.Logger.Warn("cannot greet the tunnel's peers; sessions begin with the first packets", "error", err)
	}
}

// Rotate replaces the node's static key; the new PublicKey has to be told to the peers. Until a peer has been told, what it
// sends arrives in the session that there is, for up to three minutes, and what is sent to it waits.
func (d *Device) Rotate() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errClosed
	}
	private, err := newKey(d.cfg)
	if err == nil {
		d.private = private
		err = d.engine.configure(change{private: &private})
	}
	if err != nil {
		return fmt.Errorf("replace the key of the tunnel: %w", err)
	}
	return nil
}

// Check repairs the link, its address, routes, rules and peers if anything has changed them.
func (d *Device) Check() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errClosed
	}
	if err := d.check(); err != nil {
		return fmt.Errorf("repair the tunnel: %w", err)
	}
	return nil
}

func (d *Device) check() error {
	if !guarded() {
		d.cfg.Logger.Warn("the rules that keep packets in the tunnel were gone; loading them again", "table", Table)
		if err := loadGuard(); err != nil {
			return err
		}
	}
	want := d.held
	if !d.engine.alive() {
		d.cfg.Logger.Warn("the tunnel's device has gone; making it again", "link", Link)
		d.engine.close()
		if err := d.open(); err != nil {
			return err
		}
	} else if now, ok, err := d.engine.peers(); err != nil {
		return err
	} else if ok {
		d.held = now
	}
	if err := errors.Join(d.place(), d.set(want)); err != nil {
		d.held = want // what is to be, which the next Check tries again
		return err
	}
	return nil
}

// place sees to the link's address, MTU and routes.
func (d *Device) place() error {
	if !d.address.IsValid() {
		return nil
	}
	if err := place(d.address, d.MTU(d.underlay), d.cfg.Port); err != nil {
		return err
	}
	d.engine.resized(d.MTU(d.underlay))
	return nil
}

// Close lets go of the device: the kernel's stays and goes on, the process's own is gone. The rules, and the route that
// refuses, stay.
func (d *Device) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.close()
}

func (d *Device) close() {
	if !d.closed {
		d.closed = true
		if d.timer != nil {
			d.timer.Stop()
		}
		d.engine.close()
	}
}

// Teardown removes the device, its routes and the key. The node has left its cluster.
func (d *Device) Teardown() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.close()
	return Remove(d.cfg)
}

// Remove is Teardown of what a former process has left, for one that opens no Device. What is not there is no error.
func Remove(cfg Config) error {
	if err := errors.Join(removeLink(), removeKey(cfg), removeGuard(), removeRefusals()); err != nil {
		return fmt.Errorf("remove the tunnel: %w", err)
	}
	return nil
}

var errClosed = errors.New("the tunnel is closed")
