package wire

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Organizational units of node certificates: the role that a certificate proves.
const (
	WorkerOU  = "swarm-worker"
	ManagerOU = "swarm-manager"
)

// Backdate is how far before its issue a certificate begins, so that clocks may differ.
const Backdate = time.Hour

// RoleOU returns the organizational unit of a role, empty for an unknown one.
func RoleOU(role swarmpb.NodeRole) string {
	switch role {
	case swarmpb.NodeRole_NODE_ROLE_WORKER:
		return WorkerOU
	case swarmpb.NodeRole_NODE_ROLE_MANAGER:
		return ManagerOU
	}
	return ""
}

// Identity is who a node is: its certificate and key, and the root that it trusts. It is a value: what it
// points to is never changed.
type Identity struct {
	NodeID    string
	ClusterID string
	Role      swarmpb.NodeRole
	// TLS is the chain, leaf first, with its key and parsed Leaf.
	TLS   *tls.Certificate
	Roots *x509.CertPool
	// RootPEM is what Roots was made from.
	RootPEM []byte
	// Expires is the end of life of the certificate.
	Expires time.Time
}

// NewIdentity puts an identity together and checks that its parts belong to each other: the key to the leaf,
// the leaf to the root, the names in the leaf to a node. An expired certificate is accepted: it is the proof
// for another one.
func NewIdentity(chainPEM, keyPEM, rootPEM []byte) (Identity, error) {
	cert, err := tls.X509KeyPair(chainPEM, keyPEM)
	if err != nil {
		return Identity{}, fmt.Errorf("certificate and key: %w", err)
	}
	if cert.Leaf == nil {
		if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return Identity{}, fmt.Errorf("parse certificate: %w", err)
		}
	}
	if err := CheckKey(cert.Leaf.PublicKey); err != nil {
		return Identity{}, err
	}
	roots, err := parseRoots(rootPEM)
	if err != nil {
		return Identity{}, err
	}
	pool := x509.NewCertPool()
	for _, r := range roots {
		pool.AddCert(r)
	}
	id := Identity{TLS: &cert, Roots: pool, RootPEM: bytes.Clone(rootPEM), Expires: cert.Leaf.NotAfter}
	id.NodeID, id.ClusterID, id.Role, err = namesOf(cert.Leaf)
	if err != nil {
		return Identity{}, err
	}
	chain, err := parseChain(cert.Certificate)
	if err != nil {
		return Identity{}, err
	}
	at := cert.Leaf.NotAfter.Add(-time.Second)
	if err := verifyChain(chain, pool, x509.ExtKeyUsageClientAuth, at); err != nil {
		return Identity{}, err
	}
	return id, nil
}

// Leaf is the node's certificate.
func (id Identity) Leaf() *x509.Certificate { return id.TLS.Leaf }

// Issued is when the certificate was issued: its validity begins Backdate earlier.
func (id Identity) Issued() time.Time { return id.Leaf().NotBefore.Add(Backdate) }

// Expired reports whether the certificate's life is over at now.
func (id Identity) Expired(now time.Time) bool { return now.After(id.Expires) }

// Key is the node's private key.
func (id Identity) Key() *ecdsa.PrivateKey {
	key, _ := id.TLS.PrivateKey.(*ecdsa.PrivateKey)
	return key
}

// CheckKey refuses public keys of any kind but the one that nodes use, ECDSA P-256.
func CheckKey(public any) error {
	key, ok := public.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return errors.New("the key is not ECDSA P-256")
	}
	return nil
}

// namesOf reads node, cluster and role from a certificate.
func namesOf(cert *x509.Certificate) (node, cluster string, role swarmpb.NodeRole, err error) {
	s := cert.Subject
	if s.CommonName == "" || len(s.Organization) != 1 || s.Organization[0] == "" || len(s.OrganizationalUnit) != 1 {
		return "", "", 0, errors.New("the certificate is not a node's: it must name one node, one cluster and one role")
	}
	switch s.OrganizationalUnit[0] {
	case WorkerOU:
		role = swarmpb.NodeRole_NODE_ROLE_WORKER
	case ManagerOU:
		role = swarmpb.NodeRole_NODE_ROLE_MANAGER
	default:
		return "", "", 0, fmt.Errorf("the certificate has the unknown role %q", s.OrganizationalUnit[0])
	}
	if cert.IsCA {
		return "", "", 0, errors.New("the certificate is a CA's, not a node's")
	}
	return s.CommonName, s.Organization[0], role, nil
}

func parseChain(ders [][]byte) ([]*x509.Certificate, error) {
	chain := make([]*x509.Certificate, 0, len(ders))
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("parse certificate: %w", err)
		}
		chain = append(chain, c)
	}
	return chain, nil
}

// verifyChain checks a leaf-first chain against the roots at a time.
func verifyChain(chain []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage, at time.Time) error {
	if len(chain) == 0 {
		return errors.New("there is no certificate")
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	return err
}

// parseRoots reads one or more CA certificates and nothing else.
func parseRoots(rootPEM []byte) ([]*x509.Certificate, error) {
	var roots []*x509.Certificate
	for rest := bytes.TrimSpace(rootPEM); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil || block.Type != "CERTIFICATE" {
			return nil, errors.New("the root certificate is not PEM")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse root certificate: %w", err)
		}
		if !c.IsCA || len(c.Subject.Organization) != 1 || c.Subject.Organization[0] == "" {
			return nil, errors.New("the root certificate is not a cluster's root")
		}
		roots = append(roots, c)
	}
	if len(roots) == 0 {
		return nil, errors.New("there is no root certificate")
	}
	return roots, nil
}

// VerifyIssued checks that a root issued a node's certificate, whether or not that has expired since, and
// returns the node ID in it.
func VerifyIssued(cert *x509.Certificate, rootPEM []byte) (nodeID string, err error) {
	roots, err := parseRoots(rootPEM)
	if err != nil {
		return "", err
	}
	pool, cluster := x509.NewCertPool(), ""
	for _, r := range roots {
		pool.AddCert(r)
		cluster = r.Subject.Organization[0]
	}
	at := cert.NotAfter.Add(-time.Second)
	if err := verifyChain([]*x509.Certificate{cert}, pool, x509.ExtKeyUsageClientAuth, at); err != nil {
		return "", err
	}
	node, of, _, err := namesOf(cert)
	if err == nil && of != cluster {
		err = fmt.Errorf("it names cluster %s", of)
	}
	return node, err
}
