package ingress

import (
	"encoding/binary"
	"hash/crc32"
	"net"
	"testing"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// sctpPacket has one chunk: INIT (1) or INIT ACK (2), with a tag.
func sctpPacket(from, to uint16, chunk byte, tag uint32) []byte {
	p := make([]byte, 12+20)
	binary.BigEndian.PutUint16(p, from)
	binary.BigEndian.PutUint16(p[2:], to)
	if chunk == 2 {
		binary.BigEndian.PutUint32(p[4:], tag)
	}
	p[12] = chunk
	binary.BigEndian.PutUint16(p[14:], 20)
	binary.BigEndian.PutUint32(p[16:], tag)
	binary.BigEndian.PutUint32(p[20:], 65536)
	binary.BigEndian.PutUint16(p[24:], 1)
	binary.BigEndian.PutUint16(p[26:], 1)
	binary.LittleEndian.PutUint32(p[8:], crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)))
	return p
}

// Where the kernel has no SCTP sockets its packets are made by hand: what counts here is translation, there and back.
func TestSCTP_IsLedToAReplicaOfAnotherHost_AndBack(t *testing.T) {
	l := newLab(t, 2)
	web := l.hosts[1].pod("web")
	l.tell(Update{Full: true, Services: []*swarmpb.AssignedService{publishing("s", port(sctp, 9899, 38412))}, Endpoints: []*swarmpb.Endpoint{web.endpoint("s", active)}})
	var server, client net.PacketConn
	must(t, in(web.ns, func() (err error) { server, err = net.ListenPacket("ip4:132", "0.0.0.0"); return err }))
	must(t, in(l.client, func() (err error) { client, err = net.ListenPacket("ip4:132", "0.0.0.0"); return err }))
	defer server.Close()
	defer client.Close()
	_ = server.SetDeadline(time.Now().Add(10 * time.Second))
	_ = client.SetDeadline(time.Now().Add(10 * time.Second))
	const tag = 0x11223344
	_, err := client.WriteTo(sctpPacket(5000, 9899, 1, tag), &net.IPAddr{IP: l.hosts[0].address.AsSlice()})
	must(t, err)
	b := make([]byte, 200)
	n, from, err := server.ReadFrom(b)
	if err != nil || n < 16 || plainIP(from) != clientAddr.String() || binary.BigEndian.Uint16(b[2:]) != 38412 || b[12] != 1 {
		t.Fatalf("the replica got %x from %v, %v", b[:n], from, err)
	}
	_, err = server.WriteTo(sctpPacket(38412, binary.BigEndian.Uint16(b), 2, tag), from)
	must(t, err)
	n, from, err = client.ReadFrom(b)
	if err != nil || n < 16 || plainIP(from) != l.hosts[0].address.String() || binary.BigEndian.Uint16(b) != 9899 || b[12] != 2 {
		t.Fatalf("the client got %x from %v, %v", b[:n], from, err)
	}
}

func plainIP(a net.Addr) string { return a.(*net.IPAddr).IP.String() }
