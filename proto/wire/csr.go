package wire

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// MaxCSRBytes bounds a signing request; one of ours has under 500.
const MaxCSRBytes = 4 << 10

// NewKey draws a node's private key, ECDSA P-256.
func NewKey() (*ecdsa.PrivateKey, error) {
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

// NewCSR makes a signing request (PEM) for a key. It names nobody: names are the CA's to give.
func NewCSR(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make signing request: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// ParseCSR reads a signing request (PEM) and checks that its sender holds the key, of the kind nodes use.
func ParseCSR(csr []byte) (*ecdsa.PublicKey, error) {
	if len(csr) > MaxCSRBytes {
		return nil, Errorf(CodeInvalid, "signing request: longer than %d bytes", MaxCSRBytes)
	}
	der, err := decodePEM(csr, "CERTIFICATE REQUEST")
	if err != nil {
		return nil, Errorf(CodeInvalid, "signing request: %w", err)
	}
	req, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, Errorf(CodeInvalid, "signing request: %w", err)
	}
	if err := CheckKey(req.PublicKey); err != nil {
		return nil, Errorf(CodeInvalid, "signing request: %w", err)
	}
	if err := req.CheckSignature(); err != nil {
		return nil, Errorf(CodeInvalid, "signing request: %w", err)
	}
	return req.PublicKey.(*ecdsa.PublicKey), nil
}

// SignProof signs a signing request with the key of an expired certificate: the proof that takes the place of
// a token.
func SignProof(key *ecdsa.PrivateKey, csr []byte) ([]byte, error) {
	if key == nil {
		return nil, errors.New("sign proof: there is no key")
	}
	digest := proofDigest(csr)
	return ecdsa.SignASN1(rand.Reader, key, digest[:])
}

// VerifyProof checks what SignProof made.
func VerifyProof(cert *x509.Certificate, csr, signature []byte) bool {
	key, ok := cert.PublicKey.(*ecdsa.PublicKey)
	digest := proofDigest(csr)
	return ok && ecdsa.VerifyASN1(key, digest[:], signature)
}

func proofDigest(csr []byte) [sha256.Size]byte {
	return sha256.Sum256(append([]byte("swarmd proof by an expired certificate\x00"), csr...))
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// IdentityFor puts an identity together from an issued chain (PEM, leaf first) and the key that it is for.
func IdentityFor(key *ecdsa.PrivateKey, chainPEM, rootPEM []byte) (Identity, error) {
	keyPEM, err := encodeKey(key)
	if err != nil {
		return Identity{}, err
	}
	return NewIdentity(chainPEM, keyPEM, rootPEM)
}
