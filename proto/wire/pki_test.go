package wire

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const (
	workerRole  = swarmpb.NodeRole_NODE_ROLE_WORKER
	managerRole = swarmpb.NodeRole_NODE_ROLE_MANAGER
)

// testCA issues what the real CA would, and what it never would.
type testCA struct {
	t       *testing.T
	cluster string
	cert    *x509.Certificate
	key     *ecdsa.PrivateKey
	pem     []byte
}

func newTestCA(t *testing.T, cluster string) *testCA {
	t.Helper()
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "swarm-ca", Organization: []string{cluster}},
		NotBefore: time.Now().Add(-1000 * time.Hour), NotAfter: time.Now().Add(10000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &testCA{t: t, cluster: cluster, cert: cert, key: key, pem: encodeCert(der)}
}

func (ca *testCA) leaf(key *ecdsa.PublicKey, subject pkix.Name, from, to time.Time) []byte {
	ca.t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: subject, NotBefore: from, NotAfter: to,
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key, ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	return encodeCert(der)
}

func (ca *testCA) names(node string, role swarmpb.NodeRole) pkix.Name {
	return pkix.Name{CommonName: node, Organization: []string{ca.cluster}, OrganizationalUnit: []string{RoleOU(role)}}
}

func (ca *testCA) identityUntil(node string, role swarmpb.NodeRole, to time.Time) Identity {
	ca.t.Helper()
	key, err := NewKey()
	if err != nil {
		ca.t.Fatal(err)
	}
	id, err := IdentityFor(key, ca.leaf(&key.PublicKey, ca.names(node, role), to.Add(-3*time.Hour), to), ca.pem)
	if err != nil {
		ca.t.Fatal(err)
	}
	return id
}

func (ca *testCA) identity(node string, role swarmpb.NodeRole) Identity {
	ca.t.Helper()
	return ca.identityUntil(node, role, time.Now().Add(2*time.Hour))
}

func (ca *testCA) credentials(node string, role swarmpb.NodeRole) *Credentials {
	ca.t.Helper()
	c := NewCredentials()
	c.Set(ca.identity(node, role))
	return c
}

// everyService answers all methods of the protocol with nothing, or with what do returns.
type everyService struct {
	swarmpb.UnimplementedCAServer
	swarmpb.UnimplementedReplicaServer
	do func(context.Context) error
}

func (s *everyService) GetRootCertificate(ctx context.Context, _ *swarmpb.GetRootCertificateRequest) (*swarmpb.GetRootCertificateResponse, error) {
	return &swarmpb.GetRootCertificateResponse{}, s.call(ctx)
}

func (s *everyService) RenewCertificate(ctx context.Context, _ *swarmpb.RenewCertificateRequest) (*swarmpb.RenewCertificateResponse, error) {
	return &swarmpb.RenewCertificateResponse{}, s.call(ctx)
}

func (s *everyService) ReadIndex(ctx context.Context, _ *swarmpb.ReadIndexRequest) (*swarmpb.ReadIndexResponse, error) {
	return &swarmpb.ReadIndexResponse{}, s.call(ctx)
}

func (s *everyService) call(ctx context.Context) error {
	if s.do == nil {
		return nil
	}
	return s.do(ctx)
}

// port is a running cluster port with gRPC on it.
type port struct {
	*Listener
	addr string
	log  *syncBuffer
}

func startPort(t *testing.T, creds *Credentials, svc *everyService) *port {
	t.Helper()
	l, err := Listen("127.0.0.1:0", creds)
	if err != nil {
		t.Fatal(err)
	}
	out := &syncBuffer{}
	server := NewServer(ServerConfig{Logger: slog.New(slog.NewTextHandler(out, nil))})
	swarmpb.RegisterCAServer(server, svc)
	swarmpb.RegisterReplicaServer(server, svc)
	if err := CheckAccess(server); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { l.Run(ctx) })
	wg.Go(func() { server.Serve(l.GRPC()) })
	t.Cleanup(func() { cancel(); server.Stop(); wg.Wait() })
	return &port{Listener: l, addr: l.Addr().String(), log: out}
}

func client(t *testing.T, addr string, creds *Credentials) *grpc.ClientConn {
	t.Helper()
	conn, err := Dial(addr, creds)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func rawConn(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
