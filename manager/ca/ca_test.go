package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

func TestJoin_EitherToken_MakesANodeOfThatRole(t *testing.T) {
	w := newWorld(t, Limits{})
	for _, role := range []swarmpb.NodeRole{workerRole, managerRole} {
		id := w.mustJoin(role)
		if id.Role != role || id.ClusterID != w.cluster().GetId() {
			t.Errorf("joined as %v of %s", id.Role, id.ClusterID)
		}
		leaf := id.Leaf()
		if leaf.Subject.CommonName != id.NodeID || leaf.Subject.OrganizationalUnit[0] != wire.RoleOU(role) {
			t.Errorf("certificate of %v", leaf.Subject)
		}
		if life := time.Until(id.Expires); life > 2*time.Hour || life < 2*time.Hour-time.Minute {
			t.Errorf("life %v, the cluster's is 2 h", life)
		}
		row := w.store.View().Node(id.NodeID)
		if row.GetRole() != role || row.GetSpec().GetDesiredRole() != role || row.GetCertificateExpiresAt() != id.Expires.UnixNano() ||
			row.GetSpec().GetAvailability() != swarmpb.NodeAvailability_NODE_AVAILABILITY_ACTIVE {
			t.Errorf("row %v", row)
		}
		renewed, err := wire.Renew(t.Context(), credentials(id), []string{w.addr})
		if err != nil || renewed.NodeID != id.NodeID || renewed.Role != role || renewed.Key().Equal(id.Key()) {
			t.Errorf("renewed %+v, %v", renewed, err)
		}
	}
	if n := w.store.View().NodeCount(); n != 3 {
		t.Errorf("%d nodes", n)
	}
}

func TestJoin_TokenThatMustNotWork_SaysWhy(t *testing.T) {
	w, other := newWorld(t, Limits{}), newWorld(t, Limits{})
	oldWorker, oldManager := w.founding.Tokens.GetWorker(), w.founding.Tokens.GetManager()
	newWorker := w.rotate(workerRole)
	guess, err := wire.NewToken(w.cluster().GetRootCa().GetCert())
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		token string
		code  wire.Code
		text  string
	}{
		"other cluster": {other.founding.Tokens.GetWorker(), wire.CodeInvalid, "of another cluster"},
		"guessed":       {guess, wire.CodePermissionDenied, "swarmctl join-token"},
		"rotated":       {oldWorker, wire.CodePermissionDenied, "it was rotated"},
		"cut":           {newWorker[:40], wire.CodeInvalid, "cut off"},
		"empty":         {"", wire.CodeInvalid, "empty"},
	} {
		_, err := w.join(tc.token)
		if wire.CodeOf(err) != tc.code || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %v (%v)", name, err, wire.CodeOf(err))
		}
	}
	if w.store.View().NodeCount() != 1 {
		t.Error("a refused host became a node")
	}
	if id, err := w.join(newWorker); err != nil || id.Role != workerRole {
		t.Errorf("the new token: %v", err)
	}
	if id, err := w.join(oldManager); err != nil || id.Role != managerRole {
		t.Errorf("the other role's token: %v", err)
	}
}

func TestJoin_SomeManagersUnreachable_UsesAnother(t *testing.T) {
	w, other := newWorld(t, Limits{}), newWorld(t, Limits{})
	dead, err := wire.Listen("127.0.0.1:0", wire.NewCredentials())
	if err != nil {
		t.Fatal(err)
	}
	gone := dead.Addr().String()
	dead.Close()
	id, err := wire.Join(t.Context(), wire.JoinConfig{Managers: []string{gone, other.addr, w.addr}, Token: w.founding.Tokens.GetWorker()})
	if err != nil || id.ClusterID != w.cluster().GetId() {
		t.Fatal(err)
	}
	_, err = wire.Join(t.Context(), wire.JoinConfig{Managers: []string{gone, other.addr}, Token: w.founding.Tokens.GetWorker()})
	for _, want := range []string{gone, "connection refused", other.addr, "another cluster", "2 managers"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q: %v", want, err)
		}
	}
	if _, err := wire.Join(t.Context(), wire.JoinConfig{Token: w.founding.Tokens.GetWorker()}); wire.CodeOf(err) != wire.CodeInvalid {
		t.Errorf("no address: %v", err)
	}
	if _, err := wire.Join(t.Context(), wire.JoinConfig{Managers: []string{"a b"}, Token: w.founding.Tokens.GetWorker()}); wire.CodeOf(err) != wire.CodeInvalid {
		t.Errorf("bad address: %v", err)
	}
}

func TestJoin_ManInTheMiddleWithTheRealRoot_GetsNoToken(t *testing.T) {
	w := newWorld(t, Limits{})
	// It serves the real root certificate, which is no secret, under a certificate of its own.
	fake, err := Bootstrap(&swarmpb.ClusterSpec{}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	middle := &world{t: t, creds: credentials(fake.Identity), server: w.server}
	middle.serve()
	before := w.store.View().Index()
	_, err = wire.Join(t.Context(), wire.JoinConfig{Managers: []string{middle.addr}, Token: w.founding.Tokens.GetManager()})
	if err == nil || w.store.View().Index() != before {
		t.Errorf("the token was sent: %v", err)
	}
}

func TestIssue_AnswerLostAndAskedAgain_IsTheSameNode(t *testing.T) {
	w := newWorld(t, Limits{})
	key, _ := wire.NewKey()
	csr, _ := wire.NewCSR(key)
	ctx := anyone("10.0.0.9:1")
	ask := func() (*swarmpb.IssueCertificateResponse, error) {
		return w.server.IssueCertificate(ctx, &swarmpb.IssueCertificateRequest{Csr: csr, Token: w.founding.Tokens.GetWorker()})
	}
	first, err := ask()
	if err != nil {
		t.Fatal(err)
	}
	second, err := ask()
	if err != nil || second.GetNodeId() != first.GetNodeId() || w.store.View().NodeCount() != 2 {
		t.Fatalf("%v, %v; %d nodes", second, err, w.store.View().NodeCount())
	}
	if _, err := w.server.IssueCertificate(ctx, &swarmpb.IssueCertificateRequest{Csr: csr, Token: w.founding.Tokens.GetManager()}); wire.CodeOf(err) != wire.CodeExists {
		t.Errorf("the same request for another role: %v", err)
	}
	w.setReady(first.GetNodeId(), swarmpb.NodeState_NODE_STATE_READY)
	if _, err := ask(); wire.CodeOf(err) != wire.CodeExists {
		t.Errorf("the same request once the node works: %v", err)
	}
}

func TestIssue_TokenRotatedMeanwhile_IsRefused(t *testing.T) {
	w := newWorld(t, Limits{})
	w.setBefore(func() error {
		w.setBefore(nil)
		w.rotate(workerRole)
		return nil
	})
	if _, err := w.join(w.founding.Tokens.GetWorker()); wire.CodeOf(err) != wire.CodePermissionDenied {
		t.Errorf("got %v", err)
	}
}

func TestIssue_CannotBeCommitted_NoCertificateLeaves(t *testing.T) {
	w := newWorld(t, Limits{})
	w.setBefore(func() error { return errors.New("no leader") })
	_, err := w.join(w.founding.Tokens.GetWorker())
	if wire.CodeOf(err) != wire.CodeUnavailable || !strings.Contains(err.Error(), "try again") {
		t.Errorf("got %v", err)
	}
}

func TestIssue_MalformedRequests_AreInvalidAndChangeNothing(t *testing.T) {
	w := newWorld(t, Limits{PerHost: 1e9, PerHostBurst: 1e9, Overall: 1e9, OverallBurst: 1e9})
	token := w.founding.Tokens.GetWorker()
	key, _ := wire.NewKey()
	good, _ := wire.NewCSR(key)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	rsaKey, _ := rsa.GenerateKey(rand.Reader, 2048)
	csrOf := func(key any) []byte {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
		if err != nil {
			t.Fatal(err)
		}
		return encodePEM("CERTIFICATE REQUEST", der)
	}
	forged := append([]byte(nil), good...)
	forged[len(forged)-50] ^= 1
	for name, req := range map[string]*swarmpb.IssueCertificateRequest{
		"empty": {}, "no request": {Token: token}, "garbage": {Token: token, Csr: []byte("x")}, "p384": {Token: token, Csr: csrOf(p384)},
		"rsa": {Token: token, Csr: csrOf(rsaKey)}, "forged": {Token: token, Csr: forged}, "twice": {Token: token, Csr: append(good, good...)},
		"large": {Token: token, Csr: make([]byte, wire.MaxCSRBytes+1)}, "both proofs": {Token: token, Csr: good, ExpiredCertificate: []byte("x")},
		"bad certificate": {Csr: good, ExpiredCertificate: []byte("x")}, "large certificate": {Csr: good, ExpiredCertificate: make([]byte, 1<<20)},
	} {
		if _, err := w.server.IssueCertificate(anyone("10.0.0.9:1"), req); wire.CodeOf(err) != wire.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		req := &swarmpb.IssueCertificateRequest{
			Csr:                rapid.SampledFrom([][]byte{good, nil, []byte("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n")}).Draw(t, "csr"),
			Token:              rapid.OneOf(rapid.String(), rapid.StringMatching(`SWMTKN-1-[0-9a-z]{50}-[0-9a-z]{25}`)).Draw(t, "token"),
			ExpiredCertificate: rapid.SliceOf(rapid.Byte()).Draw(t, "certificate"),
			ExpiredSignature:   rapid.SliceOf(rapid.Byte()).Draw(t, "signature"),
		}
		if _, err := w.server.IssueCertificate(anyone("10.0.0.9:1"), req); err == nil || wire.CodeOf(err) == wire.CodeInternal {
			t.Fatalf("got %v", err)
		}
	})
	if w.store.View().NodeCount() != 1 {
		t.Error("a node was made")
	}
}

func TestIssue_SubjectInTheRequest_IsIgnored(t *testing.T) {
	w := newWorld(t, Limits{})
	rapid.Check(t, func(t *rapid.T) {
		key, _ := wire.NewKey()
		subject := pkix.Name{
			CommonName: w.founding.Identity.NodeID, Organization: []string{"other"},
			OrganizationalUnit: []string{rapid.SampledFrom([]string{wire.ManagerOU, wire.WorkerOU, "x"}).Draw(t, "unit")},
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: subject, DNSNames: []string{"swarm-manager"}}, key)
		if err != nil {
			t.Fatal(err)
		}
		ctx := wire.WithPeer(context.Background(), wire.PeerInfo{Caller: swarmpb.Caller_CALLER_WORKER, NodeID: "other"})
		resp, err := w.server.IssueCertificate(ctx, &swarmpb.IssueCertificateRequest{
			Csr: encodePEM("CERTIFICATE REQUEST", der), Token: w.founding.Tokens.GetWorker(),
		})
		if err != nil {
			t.Fatal(err)
		}
		id, err := wire.IdentityFor(key, resp.GetCertificateChain(), w.founding.Identity.RootPEM)
		if err != nil || id.Role != workerRole || id.NodeID == w.founding.Identity.NodeID || id.ClusterID != w.cluster().GetId() {
			t.Fatalf("a worker's token gave %+v, %v", id, err)
		}
		w.setReady(id.NodeID, swarmpb.NodeState_NODE_STATE_READY)
	})
}

func TestRenew_Role_IsWhatTheRowAsksFor(t *testing.T) {
	w := newWorld(t, Limits{})
	id := w.mustJoin(workerRole)
	for _, role := range []swarmpb.NodeRole{managerRole, workerRole} {
		row := swarmpb.Clone(w.store.View().Node(id.NodeID))
		row.Spec.DesiredRole = role
		row.Spec.Labels = map[string]string{"zone": "a"}
		w.putNode(row)
		next, err := wire.Renew(t.Context(), credentials(id), []string{w.addr})
		if err != nil || next.Role != role {
			t.Fatalf("got %v, %v", next.Role, err)
		}
		row = w.store.View().Node(id.NodeID)
		if row.GetRole() != role || row.GetCertificateExpiresAt() != next.Expires.UnixNano() || row.GetSpec().GetLabels()["zone"] != "a" {
			t.Errorf("row %v", row)
		}
		id = next
	}
}

func TestRenew_RowChangedMeanwhile_KeepsTheChange(t *testing.T) {
	w := newWorld(t, Limits{})
	id := w.mustJoin(workerRole)
	w.setBefore(func() error {
		w.setBefore(nil)
		row := swarmpb.Clone(w.store.View().Node(id.NodeID))
		row.Spec.Availability = swarmpb.NodeAvailability_NODE_AVAILABILITY_DRAIN
		w.putNode(row)
		return nil
	})
	if _, err := wire.Renew(t.Context(), credentials(id), []string{w.addr}); err != nil {
		t.Fatal(err)
	}
	if got := w.store.View().Node(id.NodeID).GetSpec().GetAvailability(); got != swarmpb.NodeAvailability_NODE_AVAILABILITY_DRAIN {
		t.Errorf("availability %v", got)
	}
}

func TestRenew_RemovedNode_IsRefused(t *testing.T) {
	w := newWorld(t, Limits{})
	id := w.mustJoin(workerRole)
	w.removeNode(id.NodeID)
	_, err := wire.Renew(t.Context(), credentials(id), []string{w.addr})
	if wire.CodeOf(err) != wire.CodePermissionDenied || !strings.Contains(err.Error(), "swarmctl leave") {
		t.Errorf("over the wire: %v", err)
	}
	key, _ := wire.NewKey()
	csr, _ := wire.NewCSR(key)
	ctx := wire.WithPeer(t.Context(), wire.PeerInfo{Caller: swarmpb.Caller_CALLER_WORKER, NodeID: id.NodeID})
	if _, err := w.server.RenewCertificate(ctx, &swarmpb.RenewCertificateRequest{Csr: csr}); wire.CodeOf(err) != wire.CodePermissionDenied {
		t.Errorf("by the server: %v", err)
	}
	if _, err := w.server.RenewCertificate(anyone("10.0.0.9:1"), &swarmpb.RenewCertificateRequest{Csr: csr}); wire.CodeOf(err) != wire.CodeUnauthenticated {
		t.Errorf("without a node: %v", err)
	}
}

func TestExpired_NodeWithItsKey_ComesBackAsItself(t *testing.T) {
	w := newWorld(t, Limits{})
	id := w.mustJoin(workerRole)
	old := w.expired(id, 24*time.Hour)
	back, err := wire.Renew(t.Context(), credentials(old), []string{w.addr})
	if err != nil || back.NodeID != id.NodeID || back.Role != workerRole || back.Expired(time.Now()) {
		t.Fatalf("got %+v, %v", back, err)
	}
	if got := w.store.View().Node(id.NodeID).GetCertificateExpiresAt(); got != back.Expires.UnixNano() {
		t.Errorf("row has %d", got)
	}
	// A role taken away meanwhile does not come back with the old certificate.
	manager := w.mustJoin(managerRole)
	row := swarmpb.Clone(w.store.View().Node(manager.NodeID))
	row.Spec.DesiredRole = workerRole
	w.putNode(row)
	if back, err := wire.Renew(t.Context(), credentials(w.expired(manager, time.Hour)), []string{w.addr}); err != nil || back.Role != workerRole {
		t.Errorf("demoted while off: %v, %v", back.Role, err)
	}
}

func TestExpired_ProofThatMustNotWork_IsRefused(t *testing.T) {
	w, other := newWorld(t, Limits{}), newWorld(t, Limits{})
	id := w.mustJoin(workerRole)
	gone := w.mustJoin(workerRole)
	foreign := other.mustJoin(workerRole)
	w.removeNode(gone.NodeID)
	key, _ := wire.NewKey()
	csr, _ := wire.NewCSR(key)
	proof := func(id wire.Identity, signer *ecdsa.PrivateKey, signed []byte) *swarmpb.IssueCertificateRequest {
		signature, err := wire.SignProof(signer, signed)
		if err != nil {
			t.Fatal(err)
		}
		return &swarmpb.IssueCertificateRequest{Csr: csr, ExpiredCertificate: encodePEM("CERTIFICATE", id.Leaf().Raw), ExpiredSignature: signature}
	}
	fresh := w.expired(id, time.Hour)
	if _, err := w.server.IssueCertificate(anyone("10.0.0.9:1"), proof(fresh, id.Key(), csr)); err != nil {
		t.Fatalf("the good one: %v", err)
	}
	tooOld := w.expired(id, 91*24*time.Hour)
	for name, req := range map[string]*swarmpb.IssueCertificateRequest{
		"another key":        proof(fresh, key, csr),
		"another request":    proof(fresh, id.Key(), []byte("other")),
		"no signature":       {Csr: csr, ExpiredCertificate: encodePEM("CERTIFICATE", fresh.Leaf().Raw)},
		"over for too long":  proof(tooOld, id.Key(), csr),
		"removed node":       proof(w.expired(gone, time.Hour), gone.Key(), csr),
		"other cluster":      proof(foreign, foreign.Key(), csr),
		"the root as a node": {Csr: csr, ExpiredCertificate: w.cluster().GetRootCa().GetCert(), ExpiredSignature: []byte("x")},
	} {
		if _, err := w.server.IssueCertificate(anyone("10.0.0.9:1"), req); wire.CodeOf(err) != wire.CodePermissionDenied {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRenew_DesiredRoleHasChanged_CertificateAndRowFollow(t *testing.T) {
	w := newWorld(t, Limits{})
	id := w.mustJoin(workerRole)
	desire := func(role swarmpb.NodeRole) {
		node := swarmpb.Clone(w.store.View().Node(id.NodeID))
		node.Spec.DesiredRole = role
		w.putNode(node)
	}
	inRaft := map[string]bool{}
	w.server.cfg.InRaft = func(node string) bool { return inRaft[node] }
	for _, step := range []struct {
		when    string
		desired swarmpb.NodeRole
		inRaft  bool
		want    swarmpb.NodeRole
	}{
		{"promoted", managerRole, false, managerRole},
		{"a manager", managerRole, true, managerRole},
		{"demoted, still in Raft", workerRole, true, managerRole},
		{"demoted, out of Raft", workerRole, false, workerRole},
		// A follower's configuration may be behind: a worker's certificate never grows by it.
		{"a worker that seems to be in Raft", workerRole, true, workerRole},
		{"a role of another version", 9, false, workerRole},
	} {
		desire(step.desired)
		inRaft[id.NodeID] = step.inRaft
		renewed, err := wire.Renew(t.Context(), credentials(id), []string{w.addr})
		if err != nil {
			t.Fatalf("%s: %v", step.when, err)
		}
		if row := w.store.View().Node(id.NodeID); renewed.Role != step.want || row.GetRole() != step.want {
			t.Errorf("%s: the certificate says %s, the row %s; want %s", step.when, renewed.Role.Name(), row.GetRole().Name(), step.want.Name())
		}
		id = renewed
	}
}
