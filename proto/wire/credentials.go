package wire

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Protocols on the cluster port, by ALPN.
const (
	ALPNGRPC = "h2"
	ALPNRaft = "swarm-raft"
)

// Credentials are a node's current identity, which renewal swaps while connections live, and the set of its
// live connections by peer. The zero identity belongs to no cluster: every handshake fails until Set.
type Credentials struct {
	identity atomic.Pointer[Identity]
	standing atomic.Pointer[func(string, swarmpb.NodeRole) Standing]
	role     atomic.Pointer[func(string, swarmpb.NodeRole) swarmpb.NodeRole]
	dialer   atomic.Pointer[Dialer]

	mu   sync.Mutex
	live map[*trackedConn]struct{}
}

// Dialer opens the transport under TLS.
type Dialer func(ctx context.Context, addr string) (net.Conn, error)

// NewCredentials returns credentials without an identity.
func NewCredentials() *Credentials {
	return &Credentials{live: make(map[*trackedConn]struct{})}
}

// Set swaps the identity. Handshakes from now on use it; connections go on under the old one, unless it was of
// another cluster or node: then they are closed.
func (c *Credentials) Set(id Identity) {
	old := c.identity.Swap(&id)
	if old != nil && (old.ClusterID != id.ClusterID || old.NodeID != id.NodeID) {
		c.closeWhere(func(PeerInfo) bool { return true })
	}
}

// Clear forgets the identity, on leaving a cluster, and closes all connections.
func (c *Credentials) Clear() {
	c.identity.Store(nil)
	c.closeWhere(func(PeerInfo) bool { return true })
}

// Identity returns the current identity; false while the node belongs to no cluster.
func (c *Credentials) Identity() (Identity, bool) {
	id := c.identity.Load()
	if id == nil {
		return Identity{}, false
	}
	return *id, true
}

// Standing is what this node knows of a peer's place in the cluster.
type Standing int

// A peer that is no member is told so in the handshake, and has to believe it. One of whom that is not certain is cut
// off right after it, so that it tries again or elsewhere.
const (
	StandingMember Standing = iota
	StandingRemoved
	StandingUnknown
)

// SetStanding sets the check that every connection passes besides the certificate's, of a peer's node ID and certified
// role; nil: all are members. It is called concurrently, with no lock held, and a handshake waits for it.
func (c *Credentials) SetStanding(standing func(nodeID string, role swarmpb.NodeRole) Standing) {
	c.standing.Store(&standing)
}

// SetRole sets what role counts for a peer whose certificate says certified, which is what counts with nil. It is
// asked at every handshake and at every call, so that a manager which is none any more loses its rights while its
// connections live. It is called concurrently and must be quick.
func (c *Credentials) SetRole(role func(nodeID string, certified swarmpb.NodeRole) swarmpb.NodeRole) {
	c.role.Store(&role)
}

// roleOf is the role that counts. It never is more than the certificate says.
func (c *Credentials) roleOf(nodeID string, certified swarmpb.NodeRole) swarmpb.NodeRole {
	f := c.role.Load()
	if certified != swarmpb.NodeRole_NODE_ROLE_MANAGER || f == nil || *f == nil {
		return certified
	}
	if (*f)(nodeID, certified) == swarmpb.NodeRole_NODE_ROLE_MANAGER {
		return certified
	}
	return swarmpb.NodeRole_NODE_ROLE_WORKER
}

// SetDialer replaces the TCP dialer, for clusters within one process.
func (c *Credentials) SetDialer(d Dialer) { c.dialer.Store(&d) }

// CloseNode closes every live connection with a node, in both directions, and returns how many there were. A
// node must be revoked before: then it cannot come back, and none slips in between.
func (c *Credentials) CloseNode(nodeID string) int {
	return c.closeWhere(func(p PeerInfo) bool { return p.NodeID == nodeID })
}

// CloseRevoked closes every live connection with a peer that does not count as a member by now, and every one for managers alone
// (Raft's, and those that were opened to a manager) with a peer that counts as a worker by now. It returns how many
// there were.
func (c *Credentials) CloseRevoked() int {
	// The checks may wait for a connection, so none is made under the lock; each node is judged once.
	type peer struct {
		node string
		role swarmpb.NodeRole
	}
	type verdict struct{ revoked, demoted bool }
	verdicts := make(map[peer]verdict)
	c.mu.Lock()
	for t := range c.live {
		if t.info.NodeID != "" {
			verdicts[peer{t.info.NodeID, t.info.role()}] = verdict{}
		}
	}
	c.mu.Unlock()
	for p := range verdicts {
		verdicts[p] = verdict{revoked: c.standingOf(p.node, p.role) != StandingMember, demoted: c.roleOf(p.node, p.role) != p.role}
	}
	return c.closeTracked(func(t *trackedConn) bool {
		v := verdicts[peer{t.info.NodeID, t.info.role()}]
		return v.revoked || v.demoted && t.managersOnly
	})
}

// Connections returns how many connections with a node are live.
func (c *Credentials) Connections(nodeID string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for t := range c.live {
		if t.info.NodeID == nodeID {
			n++
		}
	}
	return n
}

// Expect says who must be at the other end of a connection that this node opens; zero fields: whoever.
type Expect struct {
	Role   swarmpb.NodeRole
	NodeID string
}

// ServerTLS returns a configuration for accepting peers under the current identity: TLS 1.3, certificates of
// the same cluster alone. A client without a certificate is let in on ALPNGRPC only; Raft is for managers.
func (c *Credentials) ServerTLS(alpn ...string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		NextProtos:             slices.Clone(alpn),
		ClientAuth:             tls.RequestClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			id, ok := c.Identity()
			if !ok {
				return nil, errNoCluster
			}
			return id.TLS, nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			if !slices.Contains(alpn, cs.NegotiatedProtocol) {
				return fmt.Errorf("the peer negotiated no protocol of %v", alpn)
			}
			if len(cs.PeerCertificates) == 0 && cs.NegotiatedProtocol == ALPNGRPC {
				return nil
			}
			var want Expect
			if cs.NegotiatedProtocol == ALPNRaft {
				want.Role = swarmpb.NodeRole_NODE_ROLE_MANAGER
			}
			return c.verify(cs, x509.ExtKeyUsageClientAuth, want)
		},
	}
}

// ClientTLS returns a configuration for reaching a peer of the same cluster under the current identity. Peers
// are known by the names in their certificates, never by host name or address.
func (c *Credentials) ClientTLS(alpn string, want Expect) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		NextProtos:             []string{alpn},
		// VerifyConnection does what this skips; it has no host name to compare.
		InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			id, ok := c.Identity()
			if !ok {
				return nil, errNoCluster
			}
			return id.TLS, nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			if cs.NegotiatedProtocol != alpn {
				return fmt.Errorf("the peer does not speak %s", alpn)
			}
			return c.verify(cs, x509.ExtKeyUsageServerAuth, want)
		},
	}
}

var errNoCluster = errors.New("this node belongs to no cluster; use `swarmctl init` or `swarmctl join`")

// verify is the one check of a peer's certificate. It runs in VerifyConnection, so on every handshake.
func (c *Credentials) verify(cs tls.ConnectionState, usage x509.ExtKeyUsage, want Expect) error {
	id, ok := c.Identity()
	if !ok {
		return errNoCluster
	}
	if err := verifyChain(cs.PeerCertificates, id.Roots, usage, time.Now()); err != nil {
		return fmt.Errorf("the peer's certificate is not valid in this cluster: %w", err)
	}
	node, cluster, role, err := namesOf(cs.PeerCertificates[0])
	switch {
	case err != nil:
		return err
	case cluster != id.ClusterID:
		return fmt.Errorf("the peer is of another cluster (%s)", cluster)
	case want.Role != 0 && role != want.Role:
		return fmt.Errorf("the peer is node %s in the role %s; it must be a %s", node, RoleOU(role), RoleOU(want.Role))
	case want.Role != 0 && c.roleOf(node, role) != want.Role:
		return fmt.Errorf("the peer is node %s, which is a manager no longer; it must be a %s", node, RoleOU(want.Role))
	case want.NodeID != "" && node != want.NodeID:
		return fmt.Errorf("the peer is node %s; it should be node %s", node, want.NodeID)
	case c.standingOf(node, role) == StandingRemoved:
		return errRemoved(node)
	}
	return nil
}

func errRemoved(node string) error {
	return Errorf(CodePermissionDenied, "node %s was removed from the cluster", node)
}

func errUnknown(node string) error {
	return Errorf(CodeUnavailable, "node %s is not known to be a member: it was removed, or it has joined and this node is behind and "+
		"cannot ask the leader; try again", node)
}

func (c *Credentials) standingOf(node string, role swarmpb.NodeRole) Standing {
	f := c.standing.Load()
	if f == nil || *f == nil {
		return StandingMember
	}
	return (*f)(node, role)
}

func (c *Credentials) dial(ctx context.Context, addr string) (net.Conn, error) {
	if d := c.dialer.Load(); d != nil && *d != nil {
		return (*d)(ctx, addr)
	}
	return dialTCP(ctx, addr)
}

func (c *Credentials) closeWhere(match func(PeerInfo) bool) int {
	return c.closeTracked(func(t *trackedConn) bool { return match(t.info) })
}

// closeTracked calls match with the lock held.
func (c *Credentials) closeTracked(match func(*trackedConn) bool) int {
	c.mu.Lock()
	var found []*trackedConn
	for t := range c.live {
		if match(t) {
			found = append(found, t)
		}
	}
	c.mu.Unlock()
	for _, t := range found {
		t.cut()
	}
	return len(found)
}

// track enters a handshaken connection into the set of the live ones. It ends with the life of the peer's
// certificate, so that a role or an identity never outlasts its proof.
func (c *Credentials) track(conn *tls.Conn, want Expect) (*trackedConn, error) {
	t := &trackedConn{Conn: conn, owner: c, info: peerOf(conn), managersOnly: want.Role == swarmpb.NodeRole_NODE_ROLE_MANAGER}
	life := AnonymousLifetime
	if certs := conn.ConnectionState().PeerCertificates; len(certs) > 0 {
		life = time.Until(certs[0].NotAfter)
	}
	c.mu.Lock()
	c.live[t] = struct{}{}
	t.expiry = time.AfterFunc(life, t.cut)
	c.mu.Unlock()
	if err := c.judge(t); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// judge refuses whom the handshake let pass for want of knowledge, and who was removed or demoted between its check and
// the entry: CloseNode and CloseRevoked have not seen that one.
func (c *Credentials) judge(t *trackedConn) error {
	node, role := t.info.NodeID, t.info.role()
	if node == "" {
		return nil
	}
	switch standing := c.standingOf(node, role); {
	case standing == StandingRemoved:
		return errRemoved(node)
	case standing != StandingMember:
		return errUnknown(node)
	case t.managersOnly && c.roleOf(node, role) != role:
		return Errorf(CodePermissionDenied, "node %s is a manager no longer", node)
	}
	return nil
}

// trackedConn is a handshaken connection with who is at its other end.
type trackedConn struct {
	*tls.Conn
	owner *Credentials
	info  PeerInfo
	// managersOnly: it was opened for what only managers do, so it ends when its peer is none any more.
	managersOnly bool

	// Under owner.mu.
	expiry *time.Timer
	closed bool
	after  []func()
}

// onClose has f called when the connection closes; when it is closed already, it returns false and f is not.
func (t *trackedConn) onClose(f func()) bool {
	t.owner.mu.Lock()
	defer t.owner.mu.Unlock()
	if !t.closed {
		t.after = append(t.after, f)
	}
	return !t.closed
}

func (t *trackedConn) Close() error {
	t.forget()
	return t.Conn.Close()
}

// cut closes without the goodbye of TLS, which waits for a peer that reads nothing.
func (t *trackedConn) cut() {
	t.forget()
	t.NetConn().Close()
}

func (t *trackedConn) forget() {
	t.owner.mu.Lock()
	first := !t.closed
	t.closed = true
	delete(t.owner.live, t)
	t.expiry.Stop()
	after := t.after
	t.owner.mu.Unlock()
	if first {
		for _, f := range after {
			f()
		}
	}
}
