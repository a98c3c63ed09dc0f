package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	"google.golang.org/grpc/credentials"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// handshaken is the server side for connections whose handshake the Listener has done.
type handshaken struct{}

func (handshaken) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	t, ok := conn.(*trackedConn)
	if !ok {
		return nil, nil, fmt.Errorf("a connection from %s did not come through the cluster listener", conn.RemoteAddr())
	}
	return t, newAuthInfo(t.info, t.owner), nil
}

func (handshaken) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these credentials are a server's")
}

func (handshaken) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}
func (h handshaken) Clone() credentials.TransportCredentials { return h }
func (handshaken) OverrideServerName(string) error           { return nil }

// localSocket is both sides of the local socket: who may open it is the administrator.
type localSocket struct{}

func (localSocket) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return conn, newAuthInfo(PeerInfo{Caller: swarmpb.Caller_CALLER_LOCAL}, nil), nil
}

func (localSocket) ClientHandshake(_ context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return conn, newAuthInfo(PeerInfo{Caller: swarmpb.Caller_CALLER_LOCAL}, nil), nil
}

func (localSocket) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "local"}
}
func (l localSocket) Clone() credentials.TransportCredentials { return l }
func (localSocket) OverrideServerName(string) error           { return nil }

// clientTransport is the client side: TLS by a configuration, then wrap.
type clientTransport struct {
	config *tls.Config
	wrap   func(*tls.Conn) (net.Conn, PeerInfo, error)
}

func (c clientTransport) ClientHandshake(ctx context.Context, _ string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, err := handshakeClient(ctx, raw, c.config)
	if err != nil {
		return nil, nil, err
	}
	wrapped, info, err := c.wrap(conn)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return wrapped, newAuthInfo(info, nil), nil
}

func (clientTransport) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these credentials are a client's")
}

func (clientTransport) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}
func (c clientTransport) Clone() credentials.TransportCredentials { return c }
func (clientTransport) OverrideServerName(string) error           { return nil }

// handshakeClient closes raw when it fails.
func handshakeClient(ctx context.Context, raw net.Conn, config *tls.Config) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, HandshakeTimeout)
	defer cancel()
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, &handshakeError{addr: raw.RemoteAddr().String(), err: err}
	}
	return conn, nil
}

// handshakeError says in words why the two sides do not trust each other. It is temporary to grpc-go: the
// address may be a manager's again later.
type handshakeError struct {
	addr string
	err  error
}

func (e *handshakeError) Error() string {
	var record tls.RecordHeaderError
	switch {
	case errors.Is(e.err, context.DeadlineExceeded):
		return fmt.Sprintf("manager at %s took the connection and said nothing; check that swarmd listens at that "+
			"address, and not another service", e.addr)
	case errors.As(e.err, &record):
		return fmt.Sprintf("what listens at %s is not a swarmd; check the address and port", e.addr)
	case errors.Is(e.err, errNoCluster):
		return e.err.Error()
	}
	return fmt.Sprintf("secure connection to %s: %v; check that it is a manager of this cluster", e.addr, e.err)
}

func (e *handshakeError) Unwrap() error   { return e.err }
func (e *handshakeError) Temporary() bool { return true }
