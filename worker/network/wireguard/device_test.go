package wireguard

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestTunnel_TwoHosts_ExchangePacketsOnlyEncrypted(t *testing.T) {
	a, b := pair(t)
	b.do(order{Do: "capture"})
	for _, h := range []*host{a, b} {
		h.open()
		h.do(order{Do: "listen"})
	}
	a.peers(b.peer())
	b.peers(a.peer())
	a.reaches(b, "with keys")
	b.reaches(a, "with keys")
	assertEncrypted(t, b)
	// That the capture sees what is sent in plain text.
	a.do(order{Do: "send", To: netip.AddrPortFrom(b.underlay(), appPort)})
	if text := b.do(order{Do: "received", Duration: patience}).Text; text != needle {
		t.Fatalf("in plain text: received %q", text)
	}
	for until := time.Now().Add(patience); ; { // the capture reads what the receiver has read already
		lines := b.do(order{Do: "captured"}).Lines
		if lines[1] == "1" && lines[2] == "1" {
			break
		}
		if time.Now().After(until) {
			t.Fatalf("captured frames, plain, strange: %v", lines)
		}
	}
}

func assertEncrypted(t *testing.T, h *host) {
	t.Helper()
	if lines := h.do(order{Do: "captured"}).Lines; lines[0] == "0" || lines[1] != "0" || lines[2] != "0" {
		t.Fatalf("captured frames, plain, strange: %v", lines)
	}
}

func TestTunnel_PeerUnknownToOneSide_NothingPassesEitherWay(t *testing.T) {
	a, b := pair(t)
	b.do(order{Do: "capture"})
	for _, h := range []*host{a, b} {
		h.open()
		h.do(order{Do: "listen"})
	}
	a.peers(b.peer())
	a.silence(b, "b does not know a")
	b.silence(a, "b does not know a")
	// A key that is not the node's.
	other := a.peer()
	other.PublicKey = slices.Repeat([]byte{7}, KeyLength)
	b.peers(other)
	a.silence(b, "b has another key for a")
	// A source address that is not the peer's own.
	wrong := a.peer()
	wrong.Address = Address(prefix6, 77).Addr()
	b.peers(wrong)
	a.silence(b, "b has another address for a")
	b.peers(a.peer())
	a.reaches(b, "told")
	b.peers()
	a.silence(b, "no longer known")
	assertEncrypted(t, b)
}

func TestTunnel_LinkRemovedOrProcessKilled_NothingLeavesPlainAndItComesBack(t *testing.T) {
	a, b := pair(t)
	b.do(order{Do: "capture"})
	// What would leave in plain text: a default route over the wire, where the other host has the tunnel's address too.
	a.in6("eth0", defaultRoute(b))
	for _, h := range []*host{a, b} {
		h.open()
		h.do(order{Do: "listen"})
	}
	a.peers(b.peer())
	b.peers(a.peer())
	a.reaches(b, "at first")

	a.do(order{Do: "unlink"})
	a.silence(b, "the link is gone")
	eventually(t, func() error { _, err := a.try(order{Do: "check"}); return err })
	a.reaches(b, "repaired")

	a.restart()
	a.silence(b, "the process is gone")
	key := a.key
	a.open()
	if string(a.key) != string(key) {
		t.Error("the key has changed with the process")
	}
	a.silence(b, "open without peers")
	a.do(order{Do: "listen"})
	a.peers(b.peer())
	b.reaches(a, "restarted") // the one that was not restarted speaks first
	assertEncrypted(t, b)
}

func TestRotate_PeersToldTheNewKey_GoOn(t *testing.T) {
	a, b := pair(t)
	for _, h := range []*host{a, b} {
		h.open()
		h.do(order{Do: "listen"})
	}
	a.peers(b.peer())
	b.peers(a.peer())
	a.reaches(b, "at first")
	old := a.peer()
	a.key = a.do(order{Do: "rotate"}).Key
	if string(a.key) == string(old.PublicKey) {
		t.Fatal("the key is the same")
	}
	b.peers(a.peer())
	a.reaches(b, "with the new key")
	b.reaches(a, "with the new key")
	b.peers(old)
	a.silence(b, "the old key is worth nothing")
	// The new one is what a restart finds.
	a.restart()
	key := a.key
	if a.open(); string(a.key) != string(key) {
		t.Fatal("the new key was not kept")
	}
}

func TestDevice_Idempotent_TeardownLeavesNothing(t *testing.T) {
	h := newHost(t, 1, t.TempDir())
	h.open()
	want := []string{"address fd5d:1:2:3::1/128", "link mtu 1420", "route fd5d:1:2:3::/112 type 1 metric 512", "route fd5d:1:2:3::/112 type 7 metric 1048576"}
	expect := func(when string, want ...string) {
		t.Helper()
		have := h.do(order{Do: "state"}).Lines
		have = slices.DeleteFunc(have, func(l string) bool { return strings.Contains(l, "/128 type") }) // that of the address itself
		if !slices.Equal(have, want) {
			t.Fatalf("%s: %q, want %q", when, have, want)
		}
	}
	expect("configured", want...)
	peer := Peer{PublicKey: slices.Repeat([]byte{9}, KeyLength), Endpoint: netip.MustParseAddrPort("10.0.0.9:4792"), Address: Address(prefix6, 9).Addr()}
	for range 2 {
		h.do(order{Do: "configure", Address: h.address()})
		h.peers(peer)
		h.do(order{Do: "check"})
	}
	expect("configured again", want...)
	h.do(order{Do: "configure", Address: Address(netip.MustParsePrefix("fd5d:9::/96"), 3)})
	expect("in another cluster", "address fd5d:9::3/128", "link mtu 1420", "route fd5d:9::/112 type 1 metric 512", "route fd5d:9::/112 type 7 metric 1048576")
	h.do(order{Do: "close"})
	expect("closed", "route fd5d:9::/112 type 7 metric 1048576") // in userspace the link is gone; nothing leaves meanwhile
	h.open()
	h.do(order{Do: "configure", Address: Address(netip.MustParsePrefix("fd5d:9::/96"), 3)})
	h.do(order{Do: "teardown"})
	expect("torn down")
	if left, err := os.ReadDir(h.dir); err != nil || len(left) != 0 {
		t.Fatalf("left on disk: %v %v", left, err)
	}
	if _, err := h.try(order{Do: "check"}); err == nil {
		t.Error("a torn down device can be checked")
	}
}

func TestOpen_PortTaken_SaysWhich(t *testing.T) {
	h := newHost(t, 1, t.TempDir())
	h.do(order{Do: "hog"})
	if _, err := h.try(order{Do: "open", Dir: h.dir}); err == nil || !strings.Contains(err.Error(), "4792") {
		t.Fatalf("got %v", err)
	}
	if left := h.do(order{Do: "state"}).Lines; len(left) != 0 {
		t.Fatalf("left: %v", left)
	}
	if a := h.do(order{Do: "open", Dir: h.dir, Port: 4793}); len(a.Key) != KeyLength {
		t.Fatalf("on another port: %+v", a)
	}
}

func TestOpen_KeyDamagedOrReadable_NewOneOrProtected(t *testing.T) {
	h := newHost(t, 1, t.TempDir())
	file := filepath.Join(h.dir, "wireguard.key")
	h.open()
	first := h.key
	h.do(order{Do: "close"})
	must(t, os.Chmod(file, 0o644))
	if h.open(); string(h.key) != string(first) {
		t.Error("another key")
	}
	info, err := os.Stat(file)
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	h.do(order{Do: "close"})
	must(t, os.WriteFile(file, []byte("rubbish\n"), 0o600))
	if h.open(); string(h.key) == string(first) || len(h.key) != KeyLength {
		t.Errorf("key %x", h.key)
	}
}
