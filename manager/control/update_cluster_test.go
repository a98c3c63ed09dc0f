package control

import (
	"context"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// clusterWorld is a world of a cluster that was founded on a pool of its own.
func clusterWorld(t *testing.T) *world {
	w := newWorld(t)
	cluster := swarmpb.Clone(w.view().Cluster())
	cluster.Spec = &swarmpb.ClusterSpec{FabricPool: "100.64.0.0/16"}
	cluster.Spec.SetDefaults()
	w.put(&swarmpb.Row{Row: &swarmpb.Row_Cluster{Cluster: cluster}})
	return w
}

func TestUpdateCluster_EachSetting_ChangesOrIsForLife(t *testing.T) {
	limit := uint32(9)
	changes := map[string]struct {
		spec    *swarmpb.ClusterSpec
		refused string // empty: it may be changed
	}{
		"fabric_pool":                   {spec: &swarmpb.ClusterSpec{FabricPool: "100.80.0.0/16"}, refused: "fabric pool is 100.64.0.0/16 for the cluster's life"},
		"fabric_block_length":           {spec: &swarmpb.ClusterSpec{FabricBlockLength: 25}, refused: "fabric block length is 24 for the cluster's life"},
		"data_path_port":                {spec: &swarmpb.ClusterSpec{DataPathPort: 4799}, refused: "data path port is 4789 for the cluster's life"},
		"node_cert_expiry":              {spec: &swarmpb.ClusterSpec{NodeCertExpiry: durationpb.New(48 * time.Hour)}},
		"task_history_limit":            {spec: &swarmpb.ClusterSpec{TaskHistoryLimit: &limit}},
		"gossip_key_rotation":           {spec: &swarmpb.ClusterSpec{GossipKeyRotation: durationpb.New(2 * time.Hour)}},
		"default_addr_pools":            {spec: &swarmpb.ClusterSpec{DefaultAddrPools: []string{"10.20.0.0/16"}}},
		"default_addr_pool_mask_length": {spec: &swarmpb.ClusterSpec{DefaultAddrPoolMaskLength: 26}},
		"no_rebalance":                  {spec: &swarmpb.ClusterSpec{NoRebalance: true}},
	}
	fields := (&swarmpb.ClusterSpec{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		change, ok := changes[string(field.Name())]
		if !ok {
			t.Errorf("%s: whether it may be changed is not decided", field.Name())
			continue
		}
		t.Run(string(field.Name()), func(t *testing.T) {
			w := clusterWorld(t)
			was := w.view().Cluster()
			got, err := w.server.UpdateCluster(context.Background(), &swarmpb.UpdateClusterRequest{Spec: change.spec})
			if change.refused != "" {
				expectError(t, err, wire.CodeInvalid, change.refused)
				if !proto.Equal(w.view().Cluster(), was) {
					t.Error("the cluster has changed")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := swarmpb.Clone(was.GetSpec())
			want.ProtoReflect().Set(field, change.spec.ProtoReflect().Get(field))
			now := w.view().Cluster()
			if !proto.Equal(now.GetSpec(), want) {
				t.Errorf("spec %v, want %v", now.GetSpec(), want)
			}
			if !proto.Equal(got.GetSpec(), want) || got.GetMeta().GetVersion() != now.GetMeta().GetVersion() {
				t.Errorf("answer %v, want the spec and version %d", got, now.GetMeta().GetVersion())
			}
			if !proto.Equal(now.GetJoinTokens(), was.GetJoinTokens()) || !proto.Equal(now.GetRootCa(), was.GetRootCa()) {
				t.Error("tokens or root have changed")
			}
		})
	}
}

func TestUpdateCluster_InvalidOrOld_SaysWhy(t *testing.T) {
	w := clusterWorld(t)
	update := func(req *swarmpb.UpdateClusterRequest) error {
		_, err := w.server.UpdateCluster(context.Background(), req)
		return err
	}
	expectError(t, update(&swarmpb.UpdateClusterRequest{}), wire.CodeInvalid, "cluster: the spec is missing")
	expectError(t, update(&swarmpb.UpdateClusterRequest{Spec: &swarmpb.ClusterSpec{NodeCertExpiry: durationpb.New(time.Minute)}}),
		wire.CodeInvalid, "cluster: node certificate expiry", "too short")
	version := w.view().Cluster().GetMeta().GetVersion()
	if err := update(&swarmpb.UpdateClusterRequest{Spec: &swarmpb.ClusterSpec{NoRebalance: true}, Version: version}); err != nil {
		t.Fatal(err)
	}
	expectError(t, update(&swarmpb.UpdateClusterRequest{Spec: &swarmpb.ClusterSpec{}, Version: version}), wire.CodeConflict, "the cluster was changed by somebody else")
}

func TestUpdateCluster_SameOrSentTwice_WritesOnce(t *testing.T) {
	w := clusterWorld(t)
	req := &swarmpb.UpdateClusterRequest{Spec: &swarmpb.ClusterSpec{NoRebalance: true}, RequestId: "r1"}
	for range 2 {
		if _, err := w.server.UpdateCluster(context.Background(), req); err != nil {
			t.Fatal(err)
		}
	}
	if w.proposes != 1 {
		t.Errorf("%d proposals, want 1", w.proposes)
	}
}

// A gossip key or a join token that rotates at the same moment is no concern of the user's.
func TestUpdateCluster_OtherPartOfTheRowChangedMeanwhile_KeepsBoth(t *testing.T) {
	w := clusterWorld(t)
	w.before = func() {
		cluster := swarmpb.Clone(w.view().Cluster())
		cluster.JoinTokens.Worker = "w1"
		w.put(&swarmpb.Row{Row: &swarmpb.Row_Cluster{Cluster: cluster}})
	}
	if _, err := w.server.UpdateCluster(context.Background(), &swarmpb.UpdateClusterRequest{Spec: &swarmpb.ClusterSpec{NoRebalance: true}}); err != nil {
		t.Fatal(err)
	}
	if c := w.view().Cluster(); c.GetJoinTokens().GetWorker() != "w1" || !c.GetSpec().GetNoRebalance() {
		t.Errorf("cluster %v; want the new token and no_rebalance", c)
	}
}
