// Package wire is how a node speaks: who it is (Identity, Credentials), how it is reached (Listener, NewServer)
// and how it reaches others (Dial, DialRaft, Join, Renew).
//
// It promises that no handler runs for a caller that the method's access option does not name, that a peer's
// node ID, cluster and role come from a certificate verified at the handshake, that a failed call carries an
// Error made for the user, and that a panic in a handler ends that call alone. It alone writes a node's
// identity file.
package wire

import "time"

// Limits of the cluster port. Each is per process.
const (
	// HandshakeTimeout bounds a TLS handshake on both sides.
	HandshakeTimeout = 5 * time.Second
	// DialTimeout bounds a TCP connect.
	DialTimeout = 5 * time.Second
	// MaxHandshakes is how many handshakes may be under way; more wait, and end those older than
	// HandshakeGrace to get in.
	MaxHandshakes  = 256
	HandshakeGrace = time.Second
	// MaxAnonymous and MaxAnonymousPerHost bound the connections of peers without a certificate, and
	// AnonymousLifetime their age: they have two calls to make.
	MaxAnonymous        = 256
	MaxAnonymousPerHost = 64
	AnonymousLifetime   = 30 * time.Second
	// MaxRequestBytes bounds what a server receives in one message, MaxResponseBytes what a client does.
	MaxRequestBytes  = 4 << 20
	MaxResponseBytes = 64 << 20
	// MaxStreams bounds the calls under way on one connection.
	MaxStreams = 1024
	// MaxHeaderBytes bounds the headers of one call.
	MaxHeaderBytes = 16 << 10

	// KeepaliveTime and KeepaliveTimeout find a dead peer on an idle connection.
	KeepaliveTime    = 10 * time.Second
	KeepaliveTimeout = 5 * time.Second
)
