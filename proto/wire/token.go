package wire

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
)

// A join token is SWMTKN-1-<digest of the root certificate>-<secret>, both in base36 at a fixed length. The
// digest lets a host that knows nothing else tell its cluster from any other; the secret decides the role.
const (
	tokenPrefix  = "SWMTKN-1-"
	digestLength = 50 // 256 bits in base36
	secretLength = 25 // 128 bits in base36
	secretBytes  = 16
)

// Token is a join token in its parts.
type Token struct {
	// RootDigest is the SHA-256 of the root certificate (DER).
	RootDigest [sha256.Size]byte
	Secret     string
}

// NewToken draws a new token for the cluster of a root certificate (PEM).
func NewToken(rootPEM []byte) (string, error) {
	digest, err := RootDigest(rootPEM)
	if err != nil {
		return "", err
	}
	var secret [secretBytes]byte
	rand.Read(secret[:]) // never fails: the runtime ends the process when the kernel gives no randomness
	return Token{RootDigest: digest, Secret: base36(secret[:], secretLength)}.String(), nil
}

// String is the token as users pass it on.
func (t Token) String() string {
	return tokenPrefix + base36(t.RootDigest[:], digestLength) + "-" + t.Secret
}

// Equal compares in a time that does not depend on what differs.
func (t Token) Equal(other Token) bool {
	digest := subtle.ConstantTimeCompare(t.RootDigest[:], other.RootDigest[:])
	return digest&subtle.ConstantTimeCompare([]byte(t.Secret), []byte(other.Secret)) == 1
}

// ParseToken reads a token. Its errors never repeat the secret.
func ParseToken(s string) (Token, error) {
	malformed := func(why string) error {
		return Errorf(CodeInvalid, "join token: %s; copy the whole line that `swarmctl join-token worker` prints on a manager", why)
	}
	s = strings.TrimSpace(s)
	if s == "" {
		return Token{}, malformed("it is empty")
	}
	rest, ok := strings.CutPrefix(s, tokenPrefix)
	if !ok {
		return Token{}, malformed("it does not begin with " + tokenPrefix)
	}
	digest, secret, ok := strings.Cut(rest, "-")
	if !ok || len(digest) != digestLength || len(secret) != secretLength {
		return Token{}, malformed("it is cut off or has extra characters")
	}
	raw, err := fromBase36(digest, sha256.Size)
	if err != nil {
		return Token{}, malformed("its first part " + err.Error())
	}
	if _, err := fromBase36(secret, secretBytes); err != nil {
		return Token{}, malformed("its last part " + err.Error())
	}
	return Token{RootDigest: [sha256.Size]byte(raw), Secret: secret}, nil
}

// RootDigest is the SHA-256 of the root certificate in a PEM text, over its DER form.
func RootDigest(rootPEM []byte) ([sha256.Size]byte, error) {
	root, err := ParseRoot(rootPEM)
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	return sha256.Sum256(root.Raw), nil
}

// ParseRoot reads the one root certificate of a cluster.
func ParseRoot(rootPEM []byte) (*x509.Certificate, error) {
	roots, err := parseRoots(rootPEM)
	if err != nil {
		return nil, err
	}
	if len(roots) != 1 {
		return nil, errors.New("there is more than one root certificate")
	}
	return roots[0], nil
}

func base36(raw []byte, length int) string {
	s := new(big.Int).SetBytes(raw).Text(36)
	return strings.Repeat("0", length-len(s)) + s
}

func fromBase36(s string, size int) ([]byte, error) {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return nil, errors.New("has a character other than a to z and 0 to 9")
		}
	}
	n, _ := new(big.Int).SetString(s, 36)
	if n == nil || n.BitLen() > 8*size {
		return nil, errors.New("is not a number of the right size")
	}
	return n.FillBytes(make([]byte, size)), nil
}

// decodePEM reads text that is exactly one PEM block of a type.
func decodePEM(text []byte, kind string) ([]byte, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != kind || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("not one PEM block of type " + kind)
	}
	return block.Bytes, nil
}
