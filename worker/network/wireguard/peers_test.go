package wireguard

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func peerOf(k byte, number uint32, host byte) Peer {
	key := [KeyLength]byte{k}
	return Peer{PublicKey: key[:], Endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, host}), DefaultPort), Address: Address(prefix6, number).Addr()}
}

func TestChosen_KeyOrAddressClaimedTwice_WhoHadItKeepsIt(t *testing.T) {
	self := key{1}
	good, claims := peerOf(2, 20, 2), peerOf(2, 10, 3)
	held := map[key]Peer{{2}: good}
	for name, c := range map[string]struct {
		peers []Peer
		held  map[key]Peer
		want  Peer
		wrong string
	}{
		"newcomer claims the key of a peer":   {[]Peer{claims, good}, held, good, claims.Address.String()},
		"two newcomers":                       {[]Peer{good, claims}, nil, claims, good.Address.String()},
		"newcomer claims the address":         {[]Peer{peerOf(3, 20, 3), good}, held, good, "10.0.0.3"},
		"own key":                             {[]Peer{peerOf(1, 5, 5), good}, held, good, "own key"},
		"short key":                           {[]Peer{{PublicKey: []byte{1}, Endpoint: good.Endpoint, Address: Address(prefix6, 5).Addr()}, good}, held, good, "32 bytes"},
		"no endpoint":                         {[]Peer{{PublicKey: claims.PublicKey, Address: claims.Address}, good}, nil, good, claims.Address.String()},
		"peer whose address has moved":        {[]Peer{claims}, held, claims, ""},
		"same peer twice, as a faulty list":   {[]Peer{good, good}, held, good, ""},
		"peer whose host has another address": {[]Peer{peerOf(2, 20, 9)}, held, peerOf(2, 20, 9), ""},
	} {
		got, err := chosen(c.peers, c.held, self)
		if len(got) != 1 || got[key{2}].Address != c.want.Address || got[key{2}].Endpoint != c.want.Endpoint {
			t.Errorf("%s: got %v", name, got)
		}
		if (err != nil) != (c.wrong != "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
			t.Errorf("%s: error %v, want one with %q", name, err, c.wrong)
		}
	}
}

// What difference says, done step by step, leads from any peers to any others, and no address has two peers on the way.
func TestDifference_AnyToAny_LeadsThere(t *testing.T) {
	draw := func(t *rapid.T, label string) map[key]Peer {
		out := map[key]Peer{}
		numbers := rapid.Permutation([]uint32{1, 2, 3, 4, 5}).Draw(t, label)
		for i := range rapid.IntRange(0, 5).Draw(t, label) {
			k := byte(rapid.IntRange(1, 6).Draw(t, label))
			out[key{k}] = peerOf(k, numbers[i], byte(rapid.IntRange(1, 2).Draw(t, label)))
		}
		return out
	}
	rapid.Check(t, func(t *rapid.T) {
		held, want := draw(t, "held"), draw(t, "want")
		now := maps.Clone(held)
		greeted, met := map[key]bool{}, map[key]bool{}
		first, then, late := difference(key{3}, held, want)
		for _, c := range append(first.peers, then.peers...) {
			p, had := now[c.key]
			if c.remove {
				delete(now, c.key)
				delete(greeted, c.key)
				continue
			}
			if !had && !c.address.IsValid() {
				t.Fatal("an unknown peer is changed")
			}
			if c.address.IsValid() {
				for k, other := range now {
					if k != c.key && other.Address == c.address {
						t.Fatalf("%s is taken from a peer that is there", c.address)
					}
				}
				p.Address = c.address
			}
			if c.endpoint.IsValid() {
				p.Endpoint = c.endpoint
			}
			p.PublicKey = append([]byte(nil), c.key[:]...)
			now[c.key] = p
			if c.greet {
				greeted[c.key] = true
				met[c.key] = true
			}
			if c.quiet {
				delete(greeted, c.key)
			}
		}
		same := func(a, b Peer) bool { return a.Address == b.Address && a.Endpoint == b.Endpoint }
		if !maps.EqualFunc(now, want, same) || len(greeted) != 0 {
			t.Fatalf("led to %v, want %v; greeted for ever: %v", now, want, greeted)
		}
		for k, p := range want {
			h, had := held[k]
			fresh := !had || h.Address != p.Address
			if lower := k[0] > 3; met[k] != (fresh && lower) || slices.Contains(late, k) != (fresh && !lower) {
				t.Fatalf("%x: greeted %v, late %v", k[0], met[k], late)
			}
		}
		for _, c := range first.peers {
			if h, ok := held[c.key]; ok && same(h, want[c.key]) {
				t.Fatal("a peer that stays is touched")
			}
		}
	})
}

func TestAddress_AnyNumber_OneOfTheRange(t *testing.T) {
	a := Address(prefix6, 0x1234)
	if a.String() != "fd5d:1:2:3::1234/112" || !a.Contains(Address(prefix6, 65535).Addr()) {
		t.Fatal(a)
	}
	if Address(netip.Prefix{}, 1).IsValid() {
		t.Error("an address of no prefix")
	}
}
