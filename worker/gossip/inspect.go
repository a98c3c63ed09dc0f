package gossip

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/hashicorp/memberlist"
)

// The library's messages of which this one knows something; each begins with its type.
const (
	typePing         = 0
	typeIndirectPing = 1
	typeAck          = 2
	typeSuspect      = 3
	typeAlive        = 4
	typeDead         = 5
	typePushPull     = 6
	typeCompound     = 7
	typeNack         = 11
	typeChecked      = 12 // then 4 bytes of CRC-32, then another message
	typeError        = 13
)

// leastState is what one node takes in a push/pull, as the library writes it, with a byte for each of its values.
const leastState = len("\x87" + "\xa4Addr" + "\xabIncarnation" + "\xa4Meta" + "\xa4Name" + "\xa4Port" + "\xa5State" + "\xa3Vsn" + ".......")

// inspector opens what arrives and refuses, before the library sees it, what this node would never send: the library
// makes room for what a message says of itself, and unpacks what is packed, to any depth. It lets through the messages
// that nodes exchange, none of them compressed, nested, or for users.
type inspector struct {
	ring   *memberlist.Keyring
	limits Limits
}

// packet refuses a packet; it stays as it is.
func (i inspector) packet(sealed []byte) error {
	plain, err := i.open(sealed, nil)
	if err != nil {
		return err
	}
	if plain[0] == typeChecked {
		if len(plain) <= 5 || crc32.ChecksumIEEE(plain[5:]) != binary.BigEndian.Uint32(plain[1:5]) {
			return errors.New("its checksum is wrong")
		}
		plain = plain[5:]
	}
	if plain[0] != typeCompound {
		return single(plain)
	}
	// One byte of their number, two for the length of each, then the messages.
	if len(plain) < 2 || len(plain) < 2+2*int(plain[1]) {
		return errors.New("it is cut short")
	}
	lengths, rest := plain[2:2+2*int(plain[1])], plain[2+2*int(plain[1]):]
	for ; len(lengths) > 0; lengths = lengths[2:] {
		n := int(binary.BigEndian.Uint16(lengths))
		if n > len(rest) {
			return errors.New("it is cut short")
		}
		if err := single(rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}

// single refuses a message that does not stand alone in a packet, or as one of several.
func single(message []byte) error {
	if len(message) == 0 {
		return errors.New("it has an empty message")
	}
	switch message[0] {
	case typePing, typeIndirectPing, typeAck, typeSuspect, typeAlive, typeDead, typeNack:
		return nil
	}
	return fmt.Errorf("no node sends a message of type %d in a packet", message[0])
}

// stream refuses a stream's message; head is what comes before its envelope.
func (i inspector) stream(head, sealed []byte) error {
	plain, err := i.open(sealed, head)
	if err != nil {
		return err
	}
	switch plain[0] {
	case typePushPull:
		return i.pushPull(plain[1:])
	case typePing, typeAck, typeError:
		if len(plain) > i.limits.PacketBytes {
			return fmt.Errorf("the message has %d bytes, the limit for its type is %d", len(plain), i.limits.PacketBytes)
		}
		return nil
	}
	return fmt.Errorf("no node sends a message of type %d in a stream", plain[0])
}

// pushPull refuses a header that is not written as the library writes it, which claims more nodes than there may be or
// than the bytes after it can hold, or has a state of users.
func (i inspector) pushPull(body []byte) error {
	rest, ok := bytes.CutPrefix(body, []byte("\x83\xa4Join"))
	if ok = ok && len(rest) > 0 && (rest[0] == 0xc2 || rest[0] == 0xc3); ok { // false, true
		rest, ok = bytes.CutPrefix(rest[1:], []byte("\xa5Nodes"))
	}
	var nodes uint64
	if ok {
		nodes, rest, ok = cutNumber(rest)
	}
	if ok {
		rest, ok = bytes.CutPrefix(rest, []byte("\xacUserStateLen\x00"))
	}
	switch {
	case !ok:
		return errors.New("the push/pull's header is not as this version writes it")
	case nodes > uint64(i.limits.Members)+1: // the sender does not count itself
		return fmt.Errorf("the push/pull claims %d nodes, the limit is %d", nodes, i.limits.Members+1)
	case nodes*uint64(leastState) > uint64(len(rest)):
		return fmt.Errorf("the push/pull claims %d nodes in %d bytes", nodes, len(rest))
	}
	return nil
}

// cutNumber takes a number that is not negative off the front, in any form that MessagePack has up to 32 bits.
func cutNumber(b []byte) (uint64, []byte, bool) {
	if len(b) == 0 {
		return 0, nil, false
	}
	size := map[byte]int{0xcc: 1, 0xcd: 2, 0xce: 4, 0xd0: 1, 0xd1: 2, 0xd2: 4}[b[0]]
	switch {
	case b[0] < 0x80:
		return uint64(b[0]), b[1:], true
	case size == 0, len(b) <= size, b[0] >= 0xd0 && b[1] >= 0x80: // the latter is negative
		return 0, nil, false
	}
	var n uint64
	for _, digit := range b[1 : 1+size] {
		n = n<<8 | uint64(digit)
	}
	return n, b[1+size:], true
}

// open decrypts an envelope under any of the keys; what it returns has at least one byte.
func (i inspector) open(sealed, data []byte) ([]byte, error) {
	if len(sealed) <= envelopeBytes || sealed[0] != envelope {
		return nil, errors.New("it is not encrypted as this version does")
	}
	for _, key := range i.ring.GetKeys() {
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		gcm, err := cipher.NewGCM(block)
		if err != nil {
			return nil, err
		}
		nonce, text := sealed[1:1+gcm.NonceSize()], sealed[1+gcm.NonceSize():]
		if plain, err := gcm.Open(nil, nonce, text, data); err == nil {
			return plain, nil
		}
	}
	return nil, errors.New("it is encrypted under another key")
}
