package wire

import (
	"context"
	"crypto/tls"
	"net"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// PeerInfo is who is at the other end of a connection, as the transport proved it.
type PeerInfo struct {
	// Caller is by the role that counts now, which may be less than the certificate says: Credentials.SetRole.
	Caller swarmpb.Caller
	// NodeID and ClusterID are from the certificate; empty for CALLER_ANYONE and CALLER_LOCAL.
	NodeID    string
	ClusterID string
	// Addr is ip:port, empty for a local socket.
	Addr string
}

// Host is the peer's address without the port.
func (p PeerInfo) Host() string {
	host, _, err := net.SplitHostPort(p.Addr)
	if err != nil {
		return p.Addr
	}
	return host
}

// Peer returns who called; false outside of a server of this package.
func Peer(ctx context.Context) (PeerInfo, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return PeerInfo{}, false
	}
	info, ok := p.AuthInfo.(authInfo)
	if ok && info.owner != nil && info.NodeID != "" {
		info.Caller = callerOfRole(info.owner.roleOf(info.NodeID, info.role()))
	}
	return info.PeerInfo, ok
}

// WithPeer returns a context in which Peer returns p: for calling a server's methods without a connection.
func WithPeer(ctx context.Context, p PeerInfo) context.Context {
	return peer.NewContext(ctx, &peer.Peer{AuthInfo: newAuthInfo(p, nil)})
}

func (p PeerInfo) role() swarmpb.NodeRole {
	switch p.Caller {
	case swarmpb.Caller_CALLER_WORKER:
		return swarmpb.NodeRole_NODE_ROLE_WORKER
	case swarmpb.Caller_CALLER_MANAGER:
		return swarmpb.NodeRole_NODE_ROLE_MANAGER
	}
	return swarmpb.NodeRole_NODE_ROLE_UNSPECIFIED
}

// peerOf reads the peer of a connection whose handshake has verified it.
func peerOf(conn *tls.Conn) PeerInfo {
	info := PeerInfo{Caller: swarmpb.Caller_CALLER_ANYONE, Addr: conn.RemoteAddr().String()}
	certs := conn.ConnectionState().PeerCertificates
	if len(certs) == 0 {
		return info
	}
	node, cluster, role, err := namesOf(certs[0])
	if err != nil {
		return info
	}
	info.NodeID, info.ClusterID, info.Caller = node, cluster, callerOfRole(role)
	return info
}

func callerOfRole(role swarmpb.NodeRole) swarmpb.Caller {
	if role == swarmpb.NodeRole_NODE_ROLE_MANAGER {
		return swarmpb.Caller_CALLER_MANAGER
	}
	return swarmpb.Caller_CALLER_WORKER
}

// authInfo carries PeerInfo through grpc-go.
type authInfo struct {
	credentials.CommonAuthInfo
	PeerInfo
	// owner says what role counts; nil: the one that PeerInfo has.
	owner *Credentials
}

func newAuthInfo(p PeerInfo, owner *Credentials) authInfo {
	return authInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, p, owner}
}

func (authInfo) AuthType() string { return "swarmd" }

// ValidateAuthority is asked of a per-call authority, which nobody here sets: peers are known by certificate.
func (authInfo) ValidateAuthority(string) error { return nil }
