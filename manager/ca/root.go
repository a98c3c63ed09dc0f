package ca

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// Lives of certificates.
const (
	RootLife        = 20 * 365 * 24 * time.Hour
	DefaultNodeLife = 90 * 24 * time.Hour
	MinNodeLife     = time.Hour
)

// Root signs the nodes of one cluster. It is immutable.
type Root struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

// NewRoot draws a key and makes the root certificate of a cluster.
func NewRoot(clusterID string, now time.Time) (*Root, error) {
	if clusterID == "" {
		return nil, errors.New("make root: the cluster ID is empty")
	}
	key, err := wire.NewKey()
	if err != nil {
		return nil, fmt.Errorf("make root: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, fmt.Errorf("make root: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "swarm-ca", Organization: []string{clusterID}},
		NotBefore:             now.Add(-wire.Backdate),
		NotAfter:              now.Add(RootLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make root: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make root: %w", err)
	}
	return &Root{cert: cert, key: key, pem: encodePEM("CERTIFICATE", der)}, nil
}

// ParseRoot reads the root as the cluster's row holds it.
func ParseRoot(row *swarmpb.RootCA) (*Root, error) {
	cert, err := wire.ParseRoot(row.GetCert())
	if err != nil {
		return nil, fmt.Errorf("read root: %w", err)
	}
	block, _ := pem.Decode(row.GetKey())
	if block == nil {
		return nil, errors.New("read root: the key is not PEM")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read root: %w", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("read root: the key is not the certificate's")
	}
	return &Root{cert: cert, key: key, pem: row.GetCert()}, nil
}

// Row is the root as the cluster's row holds it.
func (r *Root) Row() (*swarmpb.RootCA, error) {
	key, err := x509.MarshalPKCS8PrivateKey(r.key)
	if err != nil {
		return nil, fmt.Errorf("encode root: %w", err)
	}
	return &swarmpb.RootCA{Cert: r.pem, Key: encodePEM("PRIVATE KEY", key)}, nil
}

// PEM is the root certificate.
func (r *Root) PEM() []byte { return r.pem }

// ClusterID is the cluster that the root stands for.
func (r *Root) ClusterID() string { return r.cert.Subject.Organization[0] }

// NewTokens draws both join tokens.
func NewTokens(root *Root) (*swarmpb.JoinTokens, error) {
	worker, err := wire.NewToken(root.pem)
	if err != nil {
		return nil, err
	}
	manager, err := wire.NewToken(root.pem)
	if err != nil {
		return nil, err
	}
	return &swarmpb.JoinTokens{Worker: worker, Manager: manager}, nil
}

// Issue signs a node's certificate (PEM) for a key. It ends with the root's at the latest.
func (r *Root) Issue(key *ecdsa.PublicKey, nodeID string, role swarmpb.NodeRole, now time.Time, life time.Duration) ([]byte, time.Time, error) {
	unit := wire.RoleOU(role)
	if unit == "" || nodeID == "" {
		return nil, time.Time{}, fmt.Errorf("issue certificate: node %q in role %d is no identity", nodeID, role)
	}
	if err := wire.CheckKey(key); err != nil {
		return nil, time.Time{}, fmt.Errorf("issue certificate: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("issue certificate: %w", err)
	}
	expires := now.Add(max(life, MinNodeLife)).UTC().Truncate(time.Second)
	if expires.After(r.cert.NotAfter) {
		expires = r.cert.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject: pkix.Name{
			CommonName: nodeID, Organization: []string{r.ClusterID()}, OrganizationalUnit: []string{unit},
		},
		NotBefore:             now.Add(-wire.Backdate),
		NotAfter:              expires,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, r.cert, key, r.key)
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("issue certificate: %w", err)
	}
	return encodePEM("CERTIFICATE", der), expires, nil
}

func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

func encodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
