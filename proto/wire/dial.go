package wire

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Dial returns a client of the manager at addr (host[:port]), under the node's identity. It connects with the
// first call, and again by itself. Errors of calls are Errors already.
func Dial(addr string, creds *Credentials) (*grpc.ClientConn, error) {
	return dialPeer(addr, creds, Expect{Role: swarmpb.NodeRole_NODE_ROLE_MANAGER})
}

// DialNode is Dial for the node of that ID, whatever its role.
func DialNode(addr string, creds *Credentials, nodeID string) (*grpc.ClientConn, error) {
	if nodeID == "" {
		return nil, Errorf(CodeInvalid, "dial node at %s: the node ID is empty", addr)
	}
	return dialPeer(addr, creds, Expect{NodeID: nodeID})
}

func dialPeer(addr string, creds *Credentials, want Expect) (*grpc.ClientConn, error) {
	addr, err := CheckAddr(addr)
	if err != nil {
		return nil, err
	}
	transport := clientTransport{
		config: creds.ClientTLS(ALPNGRPC, want),
		wrap: func(conn *tls.Conn) (net.Conn, PeerInfo, error) {
			t, err := creds.track(conn, want)
			if err != nil {
				return nil, PeerInfo{}, err
			}
			return t, t.info, nil
		},
	}
	return newClient(addr, transport, creds.dial)
}

// DialAnonymous returns a client of the manager at addr without a certificate of its own, for the two join
// calls. With a root, the peer must be a manager of that root's cluster; with nil it may be anyone, and
// nothing that it says is to be believed unchecked.
func DialAnonymous(addr string, root *x509.Certificate, dial Dialer) (*grpc.ClientConn, error) {
	addr, err := CheckAddr(addr)
	if err != nil {
		return nil, err
	}
	if dial == nil {
		dial = dialTCP
	}
	transport := clientTransport{
		config: &tls.Config{
			MinVersion:             tls.VersionTLS13,
			SessionTicketsDisabled: true,
			NextProtos:             []string{ALPNGRPC},
			// VerifyConnection does what this skips; it has no host name to compare.
			InsecureSkipVerify: true,
			VerifyConnection:   func(cs tls.ConnectionState) error { return verifyPinned(cs, root) },
		},
		wrap: func(conn *tls.Conn) (net.Conn, PeerInfo, error) { return conn, peerOf(conn), nil },
	}
	return newClient(addr, transport, dial)
}

func verifyPinned(cs tls.ConnectionState, root *x509.Certificate) error {
	if root == nil {
		return nil
	}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	if err := verifyChain(cs.PeerCertificates, pool, x509.ExtKeyUsageServerAuth, time.Now()); err != nil {
		return fmt.Errorf("the peer's certificate is not of the cluster's root: %w", err)
	}
	_, cluster, role, err := namesOf(cs.PeerCertificates[0])
	switch {
	case err != nil:
		return err
	case len(root.Subject.Organization) != 1 || cluster != root.Subject.Organization[0]:
		return fmt.Errorf("the peer is of another cluster (%s)", cluster)
	case role != swarmpb.NodeRole_NODE_ROLE_MANAGER:
		return errors.New("the peer is a worker, not a manager")
	}
	return nil
}

// DialLocal returns a client of the daemon on this host, by its socket's path.
func DialLocal(socket string) (*grpc.ClientConn, error) {
	if socket == "" {
		return nil, Errorf(CodeInvalid, "the path of swarmd's socket is empty")
	}
	return newClient("swarmd.sock", localSocket{}, func(ctx context.Context, _ string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", socket)
		if err == nil {
			return conn, nil
		}
		why, what := dialReason(err), "start swarmd, or name the socket of a running one with --host"
		switch {
		case errors.Is(err, fs.ErrNotExist):
			why = "there is no such socket"
		case errors.Is(err, fs.ErrPermission):
			why, what = "permission denied", "only root may use it: try again with sudo"
		case errors.Is(err, syscall.ECONNREFUSED):
			why = "nothing listens on it"
		}
		return nil, Errorf(CodeUnavailable, "cannot reach swarmd at unix://%s: %s; %s", socket, why, what)
	})
}

// DialRaft opens a connection to the Raft of the manager at addr.
func DialRaft(ctx context.Context, addr string, creds *Credentials) (net.Conn, error) {
	addr, err := CheckAddr(addr)
	if err != nil {
		return nil, err
	}
	raw, err := creds.dial(ctx, addr)
	if err != nil {
		return nil, unreachable(addr, err)
	}
	want := Expect{Role: swarmpb.NodeRole_NODE_ROLE_MANAGER}
	conn, err := handshakeClient(ctx, raw, creds.ClientTLS(ALPNRaft, want))
	if err != nil {
		return nil, Errorf(CodeUnavailable, "%w", err)
	}
	t, err := creds.track(conn, want)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return t, nil
}

func dialTCP(ctx context.Context, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: DialTimeout}
	return d.DialContext(ctx, "tcp", addr)
}

// newClient makes a client of one address whose transport errors are texts for a user.
func newClient(addr string, transport credentials.TransportCredentials, dial Dialer) (*grpc.ClientConn, error) {
	retry := backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second}
	return grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(transport),
		grpc.WithAuthority("swarmd"),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			conn, err := dial(ctx, addr)
			var e *Error
			if err != nil && !errors.As(err, &e) {
				err = unreachable(addr, err)
			}
			return conn, err
		}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: retry, MinConnectTimeout: DialTimeout + HandshakeTimeout}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: KeepaliveTime, Timeout: KeepaliveTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxResponseBytes)),
		grpc.WithDisableServiceConfig(),
		grpc.WithNoProxy(),
		grpc.WithUnaryInterceptor(clientUnary),
		grpc.WithStreamInterceptor(clientStream),
	)
}

func clientUnary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return FromStatus(invoke(ctx, method, req, reply, cc, opts...))
}

func clientStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := open(ctx, desc, cc, method, opts...)
	if err != nil {
		return nil, FromStatus(err)
	}
	return stream{s}, nil
}

// stream maps the errors of a client's stream; io.EOF stays itself.
type stream struct{ grpc.ClientStream }

func (s stream) SendMsg(m any) error { return streamError(s.ClientStream.SendMsg(m)) }
func (s stream) RecvMsg(m any) error { return streamError(s.ClientStream.RecvMsg(m)) }
func (s stream) CloseSend() error    { return streamError(s.ClientStream.CloseSend()) }

func streamError(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return FromStatus(err)
}
