package ca

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

func TestBootstrap_NewCluster_HoldsTogether(t *testing.T) {
	now := time.Now()
	f, err := Bootstrap(&swarmpb.ClusterSpec{FabricPool: "100.64.0.0/10"}, now)
	if err != nil {
		t.Fatal(err)
	}
	cluster, node := f.Rows[0].GetPut().GetCluster(), f.Rows[1].GetPut().GetNode()
	if f.Identity.Role != managerRole || f.Identity.NodeID != node.GetId() || f.Identity.ClusterID != cluster.GetId() {
		t.Errorf("identity %+v", f.Identity)
	}
	if !swarmpb.ValidID(node.GetId()) || !swarmpb.ValidID(cluster.GetId()) || cluster.GetSpec().GetFabricPool() == "" {
		t.Errorf("rows %v", f.Rows)
	}
	if node.GetCertificateExpiresAt() != f.Identity.Expires.UnixNano() || f.Identity.Expires.Sub(now) > DefaultNodeLife {
		t.Errorf("expires %v", f.Identity.Expires)
	}
	root, err := ParseRoot(cluster.GetRootCa())
	if err != nil || root.ClusterID() != cluster.GetId() || root.cert.NotAfter.Sub(now) < RootLife-time.Minute {
		t.Errorf("root %v, %v", root, err)
	}
	for _, token := range []string{f.Tokens.GetWorker(), f.Tokens.GetManager()} {
		parsed, err := wire.ParseToken(token)
		if digest, _ := wire.RootDigest(root.PEM()); err != nil || parsed.RootDigest != digest {
			t.Errorf("token %v", err)
		}
	}
	if f.Tokens.GetWorker() == f.Tokens.GetManager() {
		t.Error("both tokens are the same")
	}
	if dir := t.TempDir(); wire.SaveIdentity(dir, f.Identity) != nil {
		t.Error("cannot be saved")
	} else if got, err := wire.LoadIdentity(dir); err != nil || got.NodeID != f.Identity.NodeID {
		t.Errorf("loaded %v, %v", got, err)
	}
}

func TestNodeLife_AnySetting_IsWithinBounds(t *testing.T) {
	for spec, want := range map[*durationpb.Duration]time.Duration{
		nil: DefaultNodeLife, durationpb.New(0): DefaultNodeLife, durationpb.New(-time.Hour): DefaultNodeLife,
		durationpb.New(time.Second): MinNodeLife, durationpb.New(5 * time.Hour): 5 * time.Hour,
	} {
		if got := nodeLife(&swarmpb.ClusterSpec{NodeCertExpiry: spec}); got != want {
			t.Errorf("%v: %v, want %v", spec, got, want)
		}
	}
}

func TestIssue_RootNearItsEnd_NodeEndsWithIt(t *testing.T) {
	root, err := NewRoot("c1", time.Now().Add(-RootLife+24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	key, _ := wire.NewKey()
	_, expires, err := root.Issue(&key.PublicKey, "n1", workerRole, time.Now(), DefaultNodeLife)
	if err != nil || expires.After(root.cert.NotAfter) {
		t.Errorf("%v, %v", expires, err)
	}
	for _, role := range []swarmpb.NodeRole{0, 9} {
		if _, _, err := root.Issue(&key.PublicKey, "n1", role, time.Now(), time.Hour); err == nil {
			t.Errorf("issued for role %d", role)
		}
	}
	if _, err := NewRoot("", time.Now()); err == nil {
		t.Error("a root of no cluster")
	}
}

func TestParseRoot_DamagedRow_IsAnError(t *testing.T) {
	one, _ := NewRoot("c1", time.Now())
	two, _ := NewRoot("c2", time.Now())
	a, _ := one.Row()
	b, _ := two.Row()
	for name, row := range map[string]*swarmpb.RootCA{
		"nothing": nil, "empty": {}, "no key": {Cert: a.Cert}, "other key": {Cert: a.Cert, Key: b.Key},
		"garbage": {Cert: []byte("x"), Key: a.Key}, "certificate as key": {Cert: a.Cert, Key: a.Cert},
	} {
		if _, err := ParseRoot(row); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
