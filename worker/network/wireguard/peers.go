package wireguard

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// chosen are the peers by key. Who has a key already keeps it: nobody takes another's place by claiming its key. Between two
// newcomers the lower address wins, the same on every node.
func chosen(peers []Peer, held map[key]Peer, self key) (map[key]Peer, error) {
	out := make(map[key]Peer, len(peers))
	addresses := make(map[netip.Addr]key, len(peers))
	var errs []error
	ordered := slices.SortedFunc(slices.Values(peers), func(a, b Peer) int { return a.Address.Compare(b.Address) })
	for _, keeps := range []bool{true, false} {
		for _, p := range ordered {
			k, err := p.key()
			had, known := held[k]
			if keeps != (err == nil && known && had.Address == p.Address) {
				continue
			}
			owner, taken := addresses[p.Address]
			switch {
			case err != nil:
			case k == self:
				err = errors.New("it has this node's own key")
			case taken && owner != k:
				err = errors.New("another peer has its address")
			case out[k].Address.IsValid() && out[k].Address != p.Address:
				err = fmt.Errorf("it has the key of %s", out[k].Address)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("peer %s at %s: %w", p.Address, p.Endpoint, err))
				continue
			}
			p.PublicKey = bytes.Clone(p.PublicKey)
			out[k], addresses[p.Address] = p, k
		}
	}
	return out, errors.Join(errs...)
}

func (p Peer) key() (k key, err error) {
	if len(p.PublicKey) != KeyLength || !p.Endpoint.IsValid() || !p.Address.Is6() {
		return k, fmt.Errorf("want a key of %d bytes (it has %d), an endpoint and an address of IPv6", KeyLength, len(p.PublicKey))
	}
	return key(p.PublicKey), nil
}

// change is what an engine has to do.
type change struct {
	private *key
	port    uint16
	peers   []peerChange
}

type peerChange struct {
	key      key
	remove   bool
	endpoint netip.AddrPort // not valid: as it is
	address  netip.Addr     // not valid: as it is
	// greet begins a session if there is none; quiet ends what greet switched on.
	greet, quiet bool
}

func byKey(a, b key) int { return bytes.Compare(a[:], b[:]) }

// difference is what leads from held to want: first one, which takes away before it gives, then the other. Of two nodes
// that get to know each other the one with the lower key greets: two handshakes that meet on the way spoil each other, and
// the next try is five seconds away. The other one greets late, if there is still no session then: it may be the one that
// was restarted.
func difference(self key, held, want map[key]Peer) (first, then change, late []key) {
	for _, k := range slices.SortedFunc(maps.Keys(held), byKey) {
		if w, ok := want[k]; !ok || w.Address != held[k].Address {
			first.peers = append(first.peers, peerChange{key: k, remove: true})
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(want), byKey) {
		w := want[k]
		h, ok := held[k]
		switch {
		case !ok || h.Address != w.Address:
			greet := byKey(self, k) < 0
			first.peers = append(first.peers, peerChange{key: k, endpoint: w.Endpoint, address: w.Address, greet: greet})
			if greet {
				then.peers = append(then.peers, peerChange{key: k, quiet: true})
			} else {
				late = append(late, k)
			}
		case h.Endpoint != w.Endpoint:
			first.peers = append(first.peers, peerChange{key: k, endpoint: w.Endpoint})
		}
	}
	return first, then, late
}
