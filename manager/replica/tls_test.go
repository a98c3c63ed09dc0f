package replica

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/swarmd/swarmd/proto/wire"
)

// tlsMember is a replica behind a cluster port of its own on loopback.
type tlsMember struct {
	*Replica
	id, address string
}

// newTLSCluster starts n members with real files, sockets and certificates, and stops them at the end.
func newTLSCluster(t testing.TB, n int) []*tlsMember {
	t.Helper()
	root, rootKey, rootPEM := testRoot(t)
	ctx, cancel := context.WithCancel(context.Background())
	group, ctx := errgroup.WithContext(ctx)
	t.Cleanup(func() {
		cancel()
		if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	var members []*tlsMember
	for i := range n {
		id := fmt.Sprintf("m%d", i+1)
		creds := wire.NewCredentials()
		creds.Set(testIdentity(t, id, root, rootKey, rootPEM))
		port, err := wire.Listen("127.0.0.1:0", creds)
		if err != nil {
			t.Fatal(err)
		}
		m := &tlsMember{id: id, address: port.Addr().String()}
		m.Replica, err = New(Config{
			Dir: filepath.Join(t.TempDir(), id), NodeID: id, ClusterID: testCluster, Address: m.address, Key: testKey(),
			Listener:    port.Raft(),
			Dial:        func(ctx context.Context, address string) (net.Conn, error) { return wire.DialRaft(ctx, address, creds) },
			DialManager: func(address string) (*grpc.ClientConn, error) { return wire.Dial(address, creds) },
			Logger:      testLogger(id),
		})
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if err := m.Bootstrap(); err != nil {
				t.Fatal(err)
			}
		}
		server := wire.NewServer(wire.ServerConfig{})
		m.Register(server)
		// The port and the server outlive Raft, as in a manager that hands leadership over.
		done := make(chan struct{})
		portCtx, closePort := context.WithCancel(context.Background())
		group.Go(func() error { return port.Run(portCtx) })
		group.Go(func() error { return server.Serve(port.GRPC()) })
		group.Go(func() error { <-done; server.Stop(); closePort(); return nil })
		group.Go(func() error { defer close(done); return m.Run(ctx) })
		members = append(members, m)
	}
	eventually(t, "the first leader", func() bool { return members[0].leads(members[0].readyAt.Load()) })
	for _, m := range members[1:] {
		f := members[0].node.Load().AddVoter(raft.ServerID(m.id), raft.ServerAddress(m.address), 0, time.Second)
		if err := f.Error(); err != nil {
			t.Fatal(err)
		}
	}
	return members
}

func testRoot(t testing.TB) (*x509.Certificate, *ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root", Organization: []string{testCluster}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return root, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func testIdentity(t testing.TB, id string, root *x509.Certificate, rootKey *ecdsa.PrivateKey, rootPEM []byte) wire.Identity {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: id, OrganizationalUnit: []string{wire.ManagerOU}, Organization: []string{testCluster}},
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, root, key.Public(), rootKey)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	identity, err := wire.NewIdentity(
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), rootPEM)
	if err != nil {
		t.Fatal(err)
	}
	return identity
}

func TestThreeMembers_OverTLSOnLoopback_ForwardAndHandOver(t *testing.T) {
	members := newTLSCluster(t, 3)
	for i, m := range members {
		if _, err := m.Propose(t.Context(), alarm(fmt.Sprint(i), fmt.Sprint("r", i))); err != nil {
			t.Fatalf("%s: %v", m.id, err)
		}
	}
	if err := members[0].node.Load().LeadershipTransfer().Error(); err != nil {
		t.Fatal(err)
	}
	for i, m := range members {
		if _, err := m.Propose(t.Context(), alarm(fmt.Sprint(i), fmt.Sprint("r", i))); err != nil {
			t.Fatalf("%s, again under its request ID: %v", m.id, err)
		}
		if _, err := m.ReadIndex(t.Context()); err != nil {
			t.Fatalf("%s: %v", m.id, err)
		}
		if n := m.Store().View().Alarm("test", fmt.Sprint(i)).GetCount(); n != 1 {
			t.Errorf("%s: write %d was applied %d times", m.id, i, n)
		}
	}
}
