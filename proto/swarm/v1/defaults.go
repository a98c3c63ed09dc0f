package swarmpb

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
)

// Defaults of a cluster's settings.
const (
	DefaultFabricPool        = "100.64.0.0/10"
	DefaultFabricBlockLength = 24
	DefaultNodeCertExpiry    = 90 * 24 * time.Hour
	DefaultTaskHistoryLimit  = 5
	DefaultGossipKeyRotation = 24 * time.Hour
	// DefaultAddrPool is where subnets of networks are chosen from, with DefaultAddrPoolMaskLength.
	DefaultAddrPool           = "10.0.0.0/8"
	DefaultAddrPoolMaskLength = 24
	DefaultDataPathPort       = 4789
)

// UDP ports of encrypted networks on every node: that of the tunnel between the hosts, and that of the VXLAN in it.
const (
	TunnelPort      = 4792
	TunnelVXLANPort = 4793
)

// SetDefaults fills the fields that are unset, so that everyone sees what is in force.
func (x *ClusterSpec) SetDefaults() {
	if x.FabricPool == "" {
		x.FabricPool = DefaultFabricPool
	}
	if x.FabricBlockLength == 0 {
		x.FabricBlockLength = DefaultFabricBlockLength
	}
	if x.NodeCertExpiry == nil {
		x.NodeCertExpiry = durationpb.New(DefaultNodeCertExpiry)
	}
	if x.TaskHistoryLimit == nil {
		limit := uint32(DefaultTaskHistoryLimit)
		x.TaskHistoryLimit = &limit
	}
	if len(x.DefaultAddrPools) == 0 {
		x.DefaultAddrPools = []string{DefaultAddrPool}
	}
	if x.DefaultAddrPoolMaskLength == 0 {
		x.DefaultAddrPoolMaskLength = DefaultAddrPoolMaskLength
	}
	if x.DataPathPort == 0 {
		x.DataPathPort = DefaultDataPathPort
	}
	if x.GossipKeyRotation == nil {
		x.GossipKeyRotation = durationpb.New(DefaultGossipKeyRotation)
	}
}
