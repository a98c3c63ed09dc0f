package gossip

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// seal puts a message into the library's envelope of a version.
func seal(t *testing.T, key []byte, version byte, plain, data []byte) []byte {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	nonce := make([]byte, gcm.NonceSize())
	for i := range nonce {
		nonce[i] = byte(rand.Uint32())
	}
	return append(append([]byte{version}, nonce...), gcm.Seal(nil, nonce, plain, data)...)
}

// sealStream is a whole stream with one message.
func sealStream(t *testing.T, key []byte, version byte, plain []byte) []byte {
	t.Helper()
	head := []byte{streamEnvelope, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(head[1:], uint32(1+12+len(plain)+16))
	return append(head, seal(t, key, version, plain, head)...)
}

// What a holder of the key can send to end a process that has the library alone: a message of no bytes, and one whose
// padding is longer than itself. What one without a key can send must do no more.
func TestGossip_HostileTraffic_ChangesNothing(t *testing.T) {
	r := newRing(t)
	a, b := r.start(1, r.address(1), false), r.start(2, r.address(2), false)
	r.converged(map[int]*member{1: a, 2: b})

	packets := [][]byte{{}, {envelope}, {0}, {244}, {244, 200}, bytes.Repeat([]byte{envelope}, 60_000), bytes.Repeat([]byte{10}, 40)}
	for range 200 {
		junk := make([]byte, rand.IntN(1500))
		for i := range junk {
			junk[i] = byte(rand.Uint32())
		}
		packets = append(packets, junk, append([]byte{envelope}, junk...))
		packets = append(packets, seal(t, key(1), envelope, junk, nil)) // a holder of the key
	}
	packets = append(packets, seal(t, key(1), 0, nil, nil), seal(t, key(1), 0, []byte{250}, nil), seal(t, key(1), envelope, nil, nil))
	conn, err := net.Dial("udp", r.address(1))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, p := range packets {
		_, _ = conn.Write(p)
	}
	huge := []byte{streamEnvelope, 0xff, 0xff, 0xff, 0xff, envelope}
	streams := [][]byte{
		nil, {streamEnvelope}, {streamEnvelope, 0, 0, 0, 0, 0}, {244, 0}, {6, 1, 2, 3, 4, 5, 6, 7}, huge,
		sealStream(t, key(1), envelope, nil), sealStream(t, key(1), 0, nil), sealStream(t, key(1), 0, []byte{250}),
		sealStream(t, key(1), envelope, []byte{6}), sealStream(t, key(9), envelope, []byte{6, 1, 2, 3}), sealStream(t, key(1), envelope, []byte{99, 0}),
	}
	for _, message := range streams {
		s, err := net.DialTimeout("tcp", r.address(1), patience)
		if err != nil {
			t.Fatal(err)
		}
		_ = s.SetDeadline(time.Now().Add(patience))
		_, _ = s.Write(message)
		_ = s.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, s) // it is answered or closed, soon
		s.Close()
	}
	r.converged(map[int]*member{1: a, 2: b})
	c := r.start(3, r.address(3), false)
	r.converged(map[int]*member{1: a, 2: b, 3: c})
}

func TestTransport_StreamsOfStrangers_AreBoundedAndEnd(t *testing.T) {
	r := newRing(t)
	a := r.start(1, r.address(1), false)
	eventually(t, "it has come up", func() bool { return a.running() != nil })
	var idle []net.Conn
	for range 20 { // that never say anything
		s, err := net.DialTimeout("tcp", r.address(1), patience)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		idle = append(idle, s)
	}
	b := r.start(2, r.address(2), false) // from another address
	r.converged(map[int]*member{1: a, 2: b})
	for _, s := range idle {
		_ = s.SetReadDeadline(time.Now().Add(patience))
		if _, err := s.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
			t.Fatalf("a silent stream was left open: %v", err)
		}
	}
}

func node(id string) *memberlist.Node {
	return &memberlist.Node{
		Name: id, Addr: net.IPv4(192, 0, 2, 1).To4(), Port: 7946,
		PMin: memberlist.ProtocolVersionMin, PMax: memberlist.ProtocolVersionMax, PCur: memberlist.ProtocolVersion2Compatible,
	}
}

func TestRoster_WhoIsNoNode_IsKeptOut(t *testing.T) {
	r := newRoster(testID(0), 10)
	if err := r.NotifyAlive(node(testID(1))); err != nil {
		t.Errorf("a node is kept out: %v", err)
	}
	for name, change := range map[string]func(*memberlist.Node){
		"name":             func(n *memberlist.Node) { n.Name = "host-1" },
		"address":          func(n *memberlist.Node) { n.Addr = []byte{1, 2, 3} },
		"no address":       func(n *memberlist.Node) { n.Addr = net.IPv4zero.To4() },
		"port":             func(n *memberlist.Node) { n.Port = 0 },
		"much to say":      func(n *memberlist.Node) { n.Meta = make([]byte, maxMeta+1) },
		"later protocol":   func(n *memberlist.Node) { n.PMin = memberlist.ProtocolVersionMax },
		"other protocol":   func(n *memberlist.Node) { n.PCur = memberlist.ProtocolVersionMax },
		"other delegation": func(n *memberlist.Node) { n.DMin = 1 },
	} {
		n := node(testID(1))
		if change(n); r.NotifyAlive(n) == nil {
			t.Errorf("%s: let in", name)
		}
	}
}

func TestRoster_InventedNames_AreBounded(t *testing.T) {
	r := newRoster(testID(0), 50)
	for range 500 {
		n := node(swarmpb.NewID())
		if r.NotifyAlive(n) == nil {
			r.NotifyJoin(n)
		}
	}
	if len(r.nodes) != 50 {
		t.Fatalf("%d members, want 50", len(r.nodes))
	}
	known := r.alive()[0].NodeID
	if err := r.NotifyAlive(node(known)); err != nil {
		t.Errorf("a member is kept out: %v", err)
	}
	if err := r.NotifyAlive(node(testID(0))); err != nil {
		t.Errorf("this node itself is kept out: %v", err)
	}
	for _, m := range r.alive()[:2] {
		r.NotifyLeave(node(m.NodeID))
	}
	r.full = time.Time{}
	if r.NotifyAlive(node(testID(1))) == nil {
		t.Error("a dead one was forgotten before the library does")
	}
	r.full = time.Time{}
	r.nodes[known].since = time.Now().Add(-time.Hour)
	if err := r.NotifyAlive(node(testID(1))); err != nil || r.nodes[known] != nil {
		t.Errorf("one long dead was not forgotten: %v", err)
	}
}

func TestInstall_AnyChangeOfKeys_LeavesExactlyThose(t *testing.T) {
	ring, err := memberlist.NewKeyring(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 300 {
		var keys [][]byte
		for _, i := range rand.Perm(5)[:1+rand.IntN(3)] {
			keys = append(keys, key(byte(i)))
		}
		before := ring.GetKeys()
		held := slices.Clone(before)
		if err := install(ring, keys); err != nil {
			t.Fatal(err)
		}
		got := slices.Clone(ring.GetKeys())
		if !bytes.Equal(got[0], keys[0]) {
			t.Fatalf("primary key is %d, want %d", got[0][0], keys[0][0])
		}
		slices.SortFunc(got, bytes.Compare)
		slices.SortFunc(keys, bytes.Compare)
		if !slices.EqualFunc(got, keys, bytes.Equal) {
			t.Fatalf("%d keys, want %d", len(got), len(keys))
		}
		if !slices.EqualFunc(before, held, bytes.Equal) {
			t.Fatal("the keys that a reader held were changed under it")
		}
	}
}

func TestLog_FloodOfErrors_IsBounded(t *testing.T) {
	var out bytes.Buffer
	l := newLogger(slog.New(slog.NewTextHandler(&out, nil)))
	for range 1000 {
		l.Print("[ERR] memberlist: Decrypt packet failed")
		l.Print("[DEBUG] memberlist: chatter")
	}
	if n := strings.Count(out.String(), "Decrypt packet failed"); n != warnings || strings.Contains(out.String(), "chatter") {
		t.Errorf("%d lines, want %d:\n%s", n, warnings, out.String())
	}
}
