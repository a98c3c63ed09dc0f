package replica

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/hashicorp/raft"
)

// A sealed snapshot file is
//
//	magic (8) | key ID (4) | salt (32) | size of the next (4) | chunk 0: its meta | chunk 1 | ... | chunk n
//
// Each chunk is AES-256-GCM under a key derived from the data key, the salt, the cluster's ID and the snapshot's;
// its nonce is its number and whether it is the last. So chunks cannot be reordered, dropped, cut off or moved to
// another snapshot. All but the last hold chunkSize bytes, so the size of what is inside follows from the file's.
const (
	snapshotMagic  = "swarmsn1"
	saltSize       = 32
	snapshotHeader = len(snapshotMagic) + keyIDSize + saltSize + 4
	chunkSize      = 64 << 10
	chunkOverhead  = 16
	maxMetaSize    = 1 << 20
)

var errCut = errors.New("it is cut off")

// chunkCipher seals and opens the chunks of one snapshot.
type chunkCipher struct {
	aead  cipher.AEAD
	count uint64
}

func (s *sealer) chunks(id string, salt []byte) (*chunkCipher, error) {
	key, err := hkdf.Key(sha256.New, s.key, salt, string(s.associated("swarmd snapshot", id, nil)), 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	return &chunkCipher{aead: aead}, err
}

func (c *chunkCipher) nonce(final bool) []byte {
	nonce := make([]byte, 4, 12)
	if final {
		nonce[0] = 1
	}
	nonce = binary.BigEndian.AppendUint64(nonce, c.count)
	c.count++
	return nonce
}

// snapshotWriter seals what is written to it.
type snapshotWriter struct {
	w      *bufio.Writer
	cipher *chunkCipher
	buf    []byte
	sealed []byte
	size   int64
}

func newSnapshotWriter(w io.Writer, s *sealer, meta *raft.SnapshotMeta) (*snapshotWriter, error) {
	plain, err := json.Marshal(meta)
	if err != nil {
		return nil, err
	}
	if len(plain) > maxMetaSize {
		return nil, fmt.Errorf("its meta has %d bytes, over %d", len(plain), maxMetaSize)
	}
	header := append(append(make([]byte, 0, snapshotHeader), snapshotMagic...), s.keyID[:]...)
	salt := make([]byte, saltSize)
	rand.Read(salt)
	header = append(header, salt...)
	sw := &snapshotWriter{w: bufio.NewWriterSize(w, 4*chunkSize), buf: make([]byte, 0, chunkSize)}
	if sw.cipher, err = s.chunks(meta.ID, salt); err != nil {
		return nil, err
	}
	sealed := sw.cipher.aead.Seal(nil, sw.cipher.nonce(false), plain, nil)
	header = binary.BigEndian.AppendUint32(header, uint32(len(sealed)))
	if _, err := sw.w.Write(append(header, sealed...)); err != nil {
		return nil, err
	}
	return sw, nil
}

func (sw *snapshotWriter) Write(p []byte) (int, error) {
	written := len(p)
	for len(p) > 0 {
		if len(sw.buf) == chunkSize {
			if err := sw.flush(false); err != nil {
				return 0, err
			}
		}
		n := min(chunkSize-len(sw.buf), len(p))
		sw.buf, p = append(sw.buf, p[:n]...), p[n:]
	}
	sw.size += int64(written)
	return written, nil
}

func (sw *snapshotWriter) flush(final bool) error {
	sw.sealed = sw.cipher.aead.Seal(sw.sealed[:0], sw.cipher.nonce(final), sw.buf, nil)
	sw.buf = sw.buf[:0]
	_, err := sw.w.Write(sw.sealed)
	return err
}

// finish seals the last chunk.
func (sw *snapshotWriter) finish() error {
	if err := sw.flush(true); err != nil {
		return err
	}
	return sw.w.Flush()
}

// snapshotReader opens a sealed snapshot chunk by chunk. Nothing that it returns is unauthenticated, and io.EOF comes
// only after the last chunk.
type snapshotReader struct {
	file   *os.File
	r      *bufio.Reader
	cipher *chunkCipher
	meta   raft.SnapshotMeta
	chunk  []byte
	plain  []byte
	err    error
}

// openSnapshotFile reads the meta; the caller closes the reader.
func openSnapshotFile(path, id string, s *sealer) (_ *snapshotReader, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	sr := &snapshotReader{file: f, r: bufio.NewReaderSize(f, 4*chunkSize), chunk: make([]byte, chunkSize+chunkOverhead)}
	header := make([]byte, snapshotHeader)
	if _, err := io.ReadFull(sr.r, header); err != nil {
		return nil, cutOff(err)
	}
	keyID := header[len(snapshotMagic):][:keyIDSize]
	salt := header[len(snapshotMagic)+keyIDSize:][:saltSize]
	switch {
	case string(header[:len(snapshotMagic)]) != snapshotMagic:
		return nil, errors.New("it is not a sealed snapshot")
	case !bytes.Equal(keyID, s.keyID[:]):
		return nil, errOtherKey
	}
	if sr.cipher, err = s.chunks(id, salt); err != nil {
		return nil, err
	}
	metaSize := binary.BigEndian.Uint32(header[snapshotHeader-4:])
	if metaSize > maxMetaSize+chunkOverhead {
		return nil, errUnsealable
	}
	sealed := make([]byte, metaSize)
	if _, err := io.ReadFull(sr.r, sealed); err != nil {
		return nil, cutOff(err)
	}
	plain, err := sr.cipher.aead.Open(nil, sr.cipher.nonce(false), sealed, nil)
	if err != nil {
		return nil, errUnsealable
	}
	if err := json.Unmarshal(plain, &sr.meta); err != nil {
		return nil, fmt.Errorf("read its meta: %w", err)
	}
	body := info.Size() - int64(snapshotHeader) - int64(metaSize)
	chunks := (body + chunkSize + chunkOverhead - 1) / (chunkSize + chunkOverhead)
	if sr.meta.Size = body - chunks*chunkOverhead; sr.meta.Size < 0 {
		return nil, errCut
	}
	return sr, nil
}

func cutOff(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errCut
	}
	return err
}

func (sr *snapshotReader) Read(p []byte) (int, error) {
	for len(sr.plain) == 0 {
		if sr.err != nil {
			return 0, sr.err
		}
		sr.next()
	}
	n := copy(p, sr.plain)
	sr.plain = sr.plain[n:]
	return n, nil
}

// next opens one chunk into plain; err is what follows it.
func (sr *snapshotReader) next() {
	n, err := io.ReadFull(sr.r, sr.chunk)
	if err != nil && cutOff(err) != errCut {
		sr.err = err
		return
	}
	_, peekErr := sr.r.Peek(1)
	final := peekErr == io.EOF
	if peekErr != nil && !final {
		sr.err = peekErr
		return
	}
	plain, err := sr.cipher.aead.Open(sr.chunk[:0], sr.cipher.nonce(final), sr.chunk[:n], nil)
	switch {
	case err != nil && final:
		sr.err = fmt.Errorf("%w, or it is cut off", errUnsealable)
	case err != nil:
		sr.err = errUnsealable
	case final:
		sr.plain, sr.err = plain, io.EOF
	default:
		sr.plain = plain
	}
}

func (sr *snapshotReader) Close() error { return sr.file.Close() }
