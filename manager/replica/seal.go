package replica

import (
	"bytes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/crypto/chacha20poly1305"
)

// A sealed record is
//
//	format (1) | key ID (4) | index (8) | term (8) | nonce (24) | XChaCha20-Poly1305 of the entry, with its tag (16)
//
// and everything before the nonce, the cluster's ID and what kind of record it is are authenticated with it. The
// nonce is random: at 192 bits no number of records under one key makes a repetition likely. There is no unsealed
// form, so nothing is ever guessed about a record that does not open.
const (
	recordFormat = 1
	keyIDSize    = 4
	headerSize   = 1 + keyIDSize + 8 + 8
	nonceSize    = chacha20poly1305.NonceSizeX
	sealOverhead = headerSize + nonceSize + chacha20poly1305.Overhead
	entryHeader  = 1 + 8 // type and time of append
)

// Kinds of record: one never opens as the other.
const (
	kindLog    = "swarmd raft log"
	kindStable = "swarmd raft stable"
)

// Reasons why sealed data does not open.
var (
	errOtherKey   = errors.New("it is sealed with another key")
	errNotSealed  = errors.New("it is not a sealed record")
	errUnsealable = errors.New("it does not open: damaged, moved from another place, or of another cluster")
)

// sealer seals and opens the records of one cluster under one data key. Safe for concurrent use.
type sealer struct {
	aead    cipher.AEAD
	key     []byte
	keyID   [keyIDSize]byte
	cluster string
}

func newSealer(key []byte, cluster string) (*sealer, error) {
	s := &sealer{key: bytes.Clone(key), cluster: cluster}
	sub, err := hkdf.Key(sha256.New, key, nil, "swarmd raft records", chacha20poly1305.KeySize)
	if err != nil {
		return nil, fmt.Errorf("derive record key: %w", err)
	}
	if s.aead, err = chacha20poly1305.NewX(sub); err != nil {
		return nil, fmt.Errorf("derive record key: %w", err)
	}
	id, err := hkdf.Key(sha256.New, key, nil, "swarmd key id", keyIDSize)
	if err != nil {
		return nil, fmt.Errorf("derive key ID: %w", err)
	}
	copy(s.keyID[:], id)
	return s, nil
}

// associated is what is authenticated beside the sealed bytes.
func (s *sealer) associated(kind, name string, header []byte) []byte {
	b := make([]byte, 0, len(kind)+len(name)+len(s.cluster)+len(header)+2)
	b = append(append(b, kind...), 0)
	b = append(append(b, s.cluster...), 0)
	return append(append(b, header...), name...)
}

func (s *sealer) seal(kind, name string, index, term uint64, fill func([]byte) []byte, size int) []byte {
	out := make([]byte, headerSize+nonceSize, size+sealOverhead)
	out[0] = recordFormat
	copy(out[1:], s.keyID[:])
	binary.BigEndian.PutUint64(out[1+keyIDSize:], index)
	binary.BigEndian.PutUint64(out[1+keyIDSize+8:], term)
	nonce := out[headerSize : headerSize+nonceSize]
	rand.Read(nonce)
	plain := fill(out[len(out):])
	sealed := s.aead.Seal(plain[:0], nonce, plain, s.associated(kind, name, out[:headerSize]))
	return out[:len(out)+len(sealed)]
}

func (s *sealer) open(kind, name string, record []byte) (index, term uint64, plain []byte, err error) {
	if len(record) < sealOverhead || record[0] != recordFormat {
		return 0, 0, nil, errNotSealed
	}
	header, nonce, sealed := record[:headerSize], record[headerSize:headerSize+nonceSize], record[headerSize+nonceSize:]
	if !bytes.Equal(header[1:1+keyIDSize], s.keyID[:]) {
		return 0, 0, nil, errOtherKey
	}
	plain, err = s.aead.Open(nil, nonce, sealed, s.associated(kind, name, header))
	if err != nil {
		return 0, 0, nil, errUnsealable
	}
	return binary.BigEndian.Uint64(header[1+keyIDSize:]), binary.BigEndian.Uint64(header[1+keyIDSize+8:]), plain, nil
}

// sealLog returns the record of a log entry.
func (s *sealer) sealLog(l *raft.Log) []byte {
	size := entryHeader + binary.MaxVarintLen64 + len(l.Extensions) + len(l.Data)
	return s.seal(kindLog, "", l.Index, l.Term, func(b []byte) []byte {
		b = append(b, byte(l.Type))
		b = binary.BigEndian.AppendUint64(b, uint64(l.AppendedAt.UnixNano()))
		b = binary.AppendUvarint(b, uint64(len(l.Extensions)))
		b = append(b, l.Extensions...)
		return append(b, l.Data...)
	}, size)
}

// openLog fills l from the record kept under index.
func (s *sealer) openLog(index uint64, record []byte, l *raft.Log) error {
	sealedIndex, term, plain, err := s.open(kindLog, "", record)
	if err != nil {
		return err
	}
	if sealedIndex != index || len(plain) < entryHeader {
		return errUnsealable
	}
	size, n := binary.Uvarint(plain[entryHeader:])
	rest := plain[entryHeader:]
	if n <= 0 || size > uint64(len(rest)-n) {
		return errUnsealable
	}
	rest = rest[n:]
	*l = raft.Log{
		Index: index, Term: term, Type: raft.LogType(plain[0]),
		AppendedAt: time.Unix(0, int64(binary.BigEndian.Uint64(plain[1:entryHeader]))),
		Data:       rest[size:],
	}
	if size > 0 {
		l.Extensions = rest[:size:size]
	}
	return nil
}

// sealStable and openStable keep Raft's own small values: the term and the vote.
func (s *sealer) sealStable(name string, value []byte) []byte {
	return s.seal(kindStable, name, 0, 0, func(b []byte) []byte { return append(b, value...) }, len(value))
}

func (s *sealer) openStable(name string, record []byte) ([]byte, error) {
	_, _, plain, err := s.open(kindStable, name, record)
	return plain, err
}
