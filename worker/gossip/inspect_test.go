package gossip

import (
	"bytes"
	"compress/lzw"
	"encoding/binary"
	"hash/crc32"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

func testInspector(t *testing.T, members int) inspector {
	t.Helper()
	ring, err := memberlist.NewKeyring([][]byte{key(2), key(1)}, key(2))
	if err != nil {
		t.Fatal(err)
	}
	return inspector{ring, Limits{Members: members}.withDefaults()}
}

// pushPull is one whose header has the number and the rest as they are given, and then so many bytes.
func pushPull(nodes, after string, bytes int) string {
	return "\x06\x83\xa4Join\xc3\xa5Nodes" + nodes + "\xacUserStateLen" + after + strings.Repeat("\x80", bytes)
}

// compressed is a message that unpacks to that many bytes of zero.
func compressed(t *testing.T, size int) string {
	t.Helper()
	var packed bytes.Buffer
	w := lzw.NewWriter(&packed, lzw.LSB, 8)
	if _, err := w.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return "\x09\x82\xa4Algo\x00\xa3Buf\xda" + string(binary.BigEndian.AppendUint16(nil, uint16(packed.Len()))) + packed.String()
}

func compound(messages ...string) string {
	out := []byte{typeCompound, byte(len(messages))}
	for _, m := range messages {
		out = binary.BigEndian.AppendUint16(out, uint16(len(m)))
	}
	return string(out) + strings.Join(messages, "")
}

func checked(message string) string {
	return "\x0c" + string(binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE([]byte(message)))) + message
}

const ping = "\x00\x81\xa5SeqNo\x01"

func TestInspector_Streams_OnlyWhatANodeSendsGetsThrough(t *testing.T) {
	i := testInspector(t, 300)
	for name, c := range map[string]struct{ message, refused string }{
		"ping":                         {ping, ""},
		"error":                        {"\x0d\x81\xa5Error\xa2no", ""},
		"1 node":                       {pushPull("\x01", "\x00", leastState), ""},
		"200 nodes":                    {pushPull("\xd1\x00\xc8", "\x00", 200*leastState), ""},
		"200 nodes, another way":       {pushPull("\xcc\xc8", "\x00", 200*leastState), ""},
		"as many as there may be":      {pushPull("\xd1\x01\x2d", "\x00", 301*leastState), ""},
		"one more than there may be":   {pushPull("\xd1\x01\x2e", "\x00", 302*leastState), "the limit is 301"},
		"a million":                    {pushPull("\xd2\x00\x10\x00\x00", "\x00", 1000), "the limit is 301"},
		"4 billion":                    {pushPull("\xce\xff\xff\xff\xff", "\x00", 1000), "the limit is 301"},
		"more than the bytes can hold": {pushPull("\x02", "\x00", 2*leastState-1), "in 99 bytes"},
		"fewer than none":              {pushPull("\xff", "\x00", leastState), "header"},
		"fewer than none, in 2 bytes":  {pushPull("\xd1\xff\xff", "\x00", leastState), "header"},
		"a fraction":                   {pushPull("\xca\x49\x80\x00\x00", "\x00", leastState), "header"},
		"64 bits":                      {pushPull("\xcf\x00\x00\x00\x00\x00\x10\x00\x00", "\x00", leastState), "header"},
		"a number that is cut short":   {"\x06\x83\xa4Join\xc3\xa5Nodes\xd2\x00\x10", "header"},
		"no number":                    {"\x06\x83\xa4Join\xc3\xa5Nodes", "header"},
		"no header":                    {"\x06", "header"},
		"state of users":               {pushPull("\x00", "\xd2\x01\x00\x00\x00", 100), "header"},
		"said twice":                   {"\x06\x84\xa4Join\xc3\xa5Nodes\x00\xacUserStateLen\x00\xa5Nodes\xd2\x00\x10\x00\x00", "header"},
		"another order":                {"\x06\x83\xa5Nodes\xd2\x00\x10\x00\x00\xa4Join\xc3\xacUserStateLen\x00", "header"},
		"a list":                       {"\x06\x93\xc3\x00\xd2\x00\x10\x00\x00", "header"},
		"long ping":                    {ping + strings.Repeat("\x91", 2<<10), "the limit for its type"},
		"compressed":                   {compressed(t, 1000), "type 9"},
		"to users":                     {"\x08\x81\xaaUserMsgLen\xd2\x01\x00\x00\x00", "type 8"},
		"compound":                     {compound(ping), "type 7"},
		"checked":                      {checked(ping), "type 12"},
	} {
		all := sealStream(t, key(1), envelope, []byte(c.message))
		if err := i.stream(all[:5], all[5:]); (err == nil) != (c.refused == "") || err != nil && !strings.Contains(err.Error(), c.refused) {
			t.Errorf("%s: %v, want %q", name, err, c.refused)
		}
	}
	all := sealStream(t, key(9), envelope, []byte(ping))
	if err := i.stream(all[:5], all[5:]); err == nil || !strings.Contains(err.Error(), "another key") {
		t.Errorf("under another key: %v", err)
	}
}

func TestInspector_Packets_OnlyWhatANodeSendsGetsThrough(t *testing.T) {
	i := testInspector(t, 0)
	for name, c := range map[string]struct{ message, refused string }{
		"one":               {ping, ""},
		"one, checked":      {checked(ping), ""},
		"several":           {compound(ping, "\x04\x80", ping), ""},
		"several, checked":  {checked(compound(ping, ping)), ""},
		"wrong checksum":    {"\x0c\x00\x00\x00\x00" + ping, "checksum"},
		"checked twice":     {checked(checked(ping)), "type 12"},
		"only a checksum":   {checked(""), "checksum"},
		"nested":            {compound(ping, compound(ping)), "type 7"},
		"checked, inside":   {compound(checked(ping)), "type 12"},
		"an empty one":      {compound(ping, ""), "empty"},
		"no number":         {"\x07", "cut short"},
		"lengths cut short": {"\x07\x02\x00\x00", "cut short"},
		"message cut short": {"\x07\x01\x00\x09\x00", "cut short"},
		"compressed":        {compressed(t, 1000), "type 9"},
		"compressed inside": {checked(compound(ping, compressed(t, 1000))), "type 9"},
		"push/pull":         {pushPull("\x00", "\x00", 0), "type 6"},
		"to users":          {"\x08user", "type 8"},
	} {
		if err := i.packet(seal(t, key(1), envelope, []byte(c.message), nil)); (err == nil) != (c.refused == "") || err != nil && !strings.Contains(err.Error(), c.refused) {
			t.Errorf("%s: %v, want %q", name, err, c.refused)
		}
	}
	if err := i.packet(seal(t, key(9), envelope, []byte(ping), nil)); err == nil || !strings.Contains(err.Error(), "another key") {
		t.Errorf("under another key: %v", err)
	}
}

// A holder of the key claims much in few bytes: by the library alone each stream here takes 19 to 128 MB, the packets
// together 51.
func TestGossip_HolderOfTheKeyClaimsMuch_TakesLittleMemory(t *testing.T) {
	const most = 12 << 20
	r := newRing(t)
	a := r.start(1, r.address(1), false)
	eventually(t, "it has come up", func() bool { return a.running() != nil })
	allocated := func(f func()) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f()
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	for name, message := range map[string]string{
		"nodes":          pushPull("\xd2\x00\x10\x00\x00", "\x00", 1000),
		"state of users": pushPull("\x00", "\xd2\x01\x30\x00\x00", 100),
		"to users":       "\x08\x81\xaaUserMsgLen\xd2\x01\x30\x00\x00",
		"compressed":     compressed(t, 32<<20),
	} {
		all := sealStream(t, key(1), envelope, []byte(message))
		if n := allocated(func() {
			s, err := net.DialTimeout("tcp", r.address(1), patience)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			_ = s.SetDeadline(time.Now().Add(patience))
			_, _ = s.Write(all)
			_, _ = io.Copy(io.Discard, s) // until it is closed
		}); n > most {
			t.Errorf("a stream that claims much (%s) took %d MB, want less than %d", name, n>>20, most>>20)
		}
	}
	conn, err := net.Dial("udp", r.address(1))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	bomb, last := seal(t, key(1), envelope, []byte(compressed(t, 500<<10)), nil), seal(t, key(1), envelope, []byte(ping), nil)
	if n := allocated(func() {
		for range 50 {
			_, _ = conn.Write(bomb)
			eventually(t, "a ping behind it is answered", func() bool {
				_, _ = conn.Write(last)
				_ = conn.SetReadDeadline(time.Now().Add(time.Second))
				_, err := conn.Read(make([]byte, 2<<10))
				return err == nil
			})
		}
	}); n > most {
		t.Errorf("packets that unpack to much took %d MB, want less than %d", n>>20, most>>20)
	}
}
