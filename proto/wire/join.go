package wire

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Bounds of the calls for a certificate, for each address that is tried.
const (
	// RootTimeout bounds connecting and reading the root.
	RootTimeout = 5 * time.Second
	// IssueTimeout bounds the call that issues, which waits for a write to be replicated.
	IssueTimeout = 10 * time.Second
)

// JoinConfig says how a host becomes a node. Either Token or Expired is required.
type JoinConfig struct {
	// Managers are tried in this order, host[:port].
	Managers []string
	Token    string
	// Expired is the node's identity of before: it comes back as the same node.
	Expired *Identity
	// Key is the new private key; nil: drawn.
	Key *ecdsa.PrivateKey
	// Dial replaces the TCP dialer.
	Dial Dialer
}

// Join asks the managers for an identity. Nothing secret is sent before the manager has proven that it belongs
// to the cluster that the token, or the old identity, names. All addresses get the same signing request, so an
// answer that was lost is given again. Errors say which address failed with what.
func Join(ctx context.Context, cfg JoinConfig) (Identity, error) {
	j, err := newJoiner(cfg)
	if err != nil {
		return Identity{}, err
	}
	return tryAll(ctx, "join", cfg.Managers, j.at)
}

type joiner struct {
	cfg   JoinConfig
	token Token
	key   *ecdsa.PrivateKey
	req   *swarmpb.IssueCertificateRequest
}

func newJoiner(cfg JoinConfig) (*joiner, error) {
	j := &joiner{cfg: cfg, key: cfg.Key}
	var err error
	if j.key == nil {
		if j.key, err = NewKey(); err != nil {
			return nil, fmt.Errorf("join: %w", err)
		}
	}
	csr, err := NewCSR(j.key)
	if err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	j.req = &swarmpb.IssueCertificateRequest{Csr: csr}
	if cfg.Expired == nil {
		if j.token, err = ParseToken(cfg.Token); err != nil {
			return nil, err
		}
		j.req.Token = j.token.String()
		return j, nil
	}
	j.req.ExpiredCertificate = encodeCert(cfg.Expired.Leaf().Raw)
	if j.req.ExpiredSignature, err = SignProof(cfg.Expired.Key(), csr); err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	return j, nil
}

func (j *joiner) at(ctx context.Context, addr string) (Identity, error) {
	root, rootPEM, err := j.root(ctx, addr)
	if err != nil {
		return Identity{}, err
	}
	conn, err := DialAnonymous(addr, root, j.cfg.Dial)
	if err != nil {
		return Identity{}, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, IssueTimeout)
	defer cancel()
	resp, err := swarmpb.NewCAClient(conn).IssueCertificate(ctx, j.req)
	if err != nil {
		return Identity{}, err
	}
	id, err := IdentityFor(j.key, resp.GetCertificateChain(), rootPEM)
	switch {
	case err != nil:
		return Identity{}, Errorf(CodeInternal, "the certificate that the manager issued is not usable: %w", err)
	case id.NodeID != resp.GetNodeId() || id.Role != resp.GetRole() || id.ClusterID != root.Subject.Organization[0]:
		return Identity{}, Errorf(CodeInternal, "the certificate that the manager issued is not the one that it announced")
	case j.cfg.Expired != nil && id.NodeID != j.cfg.Expired.NodeID:
		return Identity{}, Errorf(CodeInternal, "the certificate that the manager issued is of another node")
	}
	return id, nil
}

// root is the certificate to trust: the old identity's, or what the manager gives if the token vouches for it.
func (j *joiner) root(ctx context.Context, addr string) (*x509.Certificate, []byte, error) {
	if old := j.cfg.Expired; old != nil {
		roots, err := parseRoots(old.RootPEM)
		if err != nil {
			return nil, nil, err
		}
		return roots[0], old.RootPEM, nil
	}
	conn, err := DialAnonymous(addr, nil, j.cfg.Dial)
	if err != nil {
		return nil, nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, RootTimeout)
	defer cancel()
	resp, err := swarmpb.NewCAClient(conn).GetRootCertificate(ctx, &swarmpb.GetRootCertificateRequest{})
	if err != nil {
		return nil, nil, err
	}
	root, err := ParseRoot(resp.GetCertificate())
	if err != nil {
		return nil, nil, Errorf(CodeInternal, "the manager's answer: %w", err)
	}
	digest, err := RootDigest(resp.GetCertificate())
	if err != nil {
		return nil, nil, Errorf(CodeInternal, "the manager's answer: %w", err)
	}
	if digest != j.token.RootDigest {
		return nil, nil, Errorf(CodeInvalid, "the join token is of another cluster than this manager; use the token that "+
			"`swarmctl join-token worker` prints there, or the address of a manager of the token's cluster")
	}
	return root, resp.GetCertificate(), nil
}

// Renew asks the managers for a new certificate of the node's present role, under its current identity or, once
// that has expired, by proof of its key. It changes nothing: see Credentials.Set and SaveIdentity.
func Renew(ctx context.Context, creds *Credentials, managers []string) (Identity, error) {
	old, ok := creds.Identity()
	if !ok {
		return Identity{}, Errorf(CodeFailedPrecondition, "renew certificate: %w", errNoCluster)
	}
	if old.Expired(time.Now()) {
		return Join(ctx, JoinConfig{Managers: managers, Expired: &old, Dial: creds.dial})
	}
	return tryAll(ctx, "renew certificate", managers, func(ctx context.Context, addr string) (Identity, error) {
		conn, err := Dial(addr, creds)
		if err != nil {
			return Identity{}, err
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(ctx, IssueTimeout)
		defer cancel()
		return renewBy(ctx, old, func(ctx context.Context, req *swarmpb.RenewCertificateRequest) (*swarmpb.RenewCertificateResponse, error) {
			return swarmpb.NewCAClient(conn).RenewCertificate(ctx, req)
		})
	})
}

// RenewFunc is the call that renews, on a connection or in this process.
type RenewFunc func(context.Context, *swarmpb.RenewCertificateRequest) (*swarmpb.RenewCertificateResponse, error)

func renewBy(ctx context.Context, old Identity, call RenewFunc) (Identity, error) {
	key, err := NewKey()
	if err != nil {
		return Identity{}, fmt.Errorf("renew certificate: %w", err)
	}
	csr, err := NewCSR(key)
	if err != nil {
		return Identity{}, fmt.Errorf("renew certificate: %w", err)
	}
	resp, err := call(ctx, &swarmpb.RenewCertificateRequest{Csr: csr})
	if err != nil {
		return Identity{}, err
	}
	id, err := IdentityFor(key, resp.GetCertificateChain(), old.RootPEM)
	switch {
	case err != nil:
		return Identity{}, Errorf(CodeInternal, "the certificate that the manager issued is not usable: %w", err)
	case id.NodeID != old.NodeID || id.ClusterID != old.ClusterID || id.Role != resp.GetRole():
		return Identity{}, Errorf(CodeInternal, "the certificate that the manager issued is of another node, cluster or role")
	}
	return id, nil
}

// tryAll goes through the managers until one answers. A refusal is the cluster's and ends it: the other
// managers would say the same.
func tryAll(ctx context.Context, verb string, managers []string, try func(context.Context, string) (Identity, error)) (Identity, error) {
	if len(managers) == 0 {
		return Identity{}, Errorf(CodeInvalid, "%s: no manager's address is known; give one, host[:port]", verb)
	}
	var addrs []string
	for _, m := range managers {
		addr, err := CheckAddr(m)
		if err != nil {
			return Identity{}, err
		}
		addrs = append(addrs, addr)
	}
	var failures []error
	for _, addr := range addrs {
		id, err := try(ctx, addr)
		if err == nil {
			return id, nil
		}
		failures = append(failures, Errorf(CodeOf(err), "%s at %s: %w", verb, addr, err))
		if ctx.Err() != nil || isRefusal(err) {
			break
		}
	}
	if len(failures) == 1 {
		return Identity{}, failures[0]
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s: none of %d managers could be used:", verb, len(failures))
	for _, f := range failures {
		text.WriteString("\n  " + f.Error())
	}
	return Identity{}, &Error{Code: CodeOf(failures[len(failures)-1]), Message: text.String(), cause: errors.Join(failures...)}
}

func isRefusal(err error) bool {
	switch CodeOf(err) {
	case CodePermissionDenied, CodeFailedPrecondition:
		return true
	}
	return false
}
