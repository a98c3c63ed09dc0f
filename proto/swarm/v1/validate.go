package swarmpb

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
)

// Limits of what a user may write.
const (
	// MaxSpecBytes bounds a service's spec in its wire form.
	MaxSpecBytes = 256 << 10
	// MaxNameLength bounds a service's name: it is a DNS label too.
	MaxNameLength = 63
	// MaxReplicas bounds the replicas of one service.
	MaxReplicas = 1_000_000
	// MaxTaskHistory bounds the ended tasks that are kept of a replica.
	MaxTaskHistory = 1000
	// MinNanoCPUs and MinMemoryBytes are the least that can be reserved or allowed.
	MinNanoCPUs    = 1_000_000
	MinMemoryBytes = 4 << 20
	// MinCertExpiry is the shortest life of a node's certificate.
	MinCertExpiry = time.Hour
	// MinGossipKeyRotation is the shortest life of a gossip key, MaxGossipKeyRotation the longest.
	MinGossipKeyRotation = time.Hour
	MaxGossipKeyRotation = 365 * 24 * time.Hour
	// MaxPort is the highest port.
	MaxPort = 65535
)

var serviceName = regexp.MustCompile(`^[a-zA-Z0-9](?:[-_]*[A-Za-z0-9]+)*$`)

// ValidateServiceName checks the name of a service.
func ValidateServiceName(name string) error {
	var p problems
	p.serviceName(name)
	return p.err()
}

func (p *problems) serviceName(name string) {
	field := fmt.Sprintf("name %q", name)
	switch {
	case name == "":
		p.add("name", "it is empty", "give the service a name")
	case len(name) > MaxNameLength:
		p.addf(field, fmt.Sprintf("use at most %d", MaxNameLength), "it has %d characters", len(name))
	case !serviceName.MatchString(name):
		p.add(field, "it is not a valid service name",
			"use letters, digits, dashes and underscores, with a letter or digit first and last")
	}
}

// Validate checks the spec as a user wrote it. The error holds a *FieldError for each thing that is wrong, in the
// order of the fields.
func (x *ServiceSpec) Validate() error {
	var p problems
	if x == nil {
		p.add("service", "it has no spec", "give at least a name and an image")
		return p.err()
	}
	if x.IsAttachment() {
		p.add(fmt.Sprintf("service %q", x.Name), "it stands for a container outside of services, and cannot be made or changed as a service",
			"attach such a container with `swarmctl network connect`, and end that with `swarmctl network disconnect`")
		return p.err()
	}
	p.serviceName(x.Name)
	p.labels("label", x.Labels)
	p.task(x.Task)
	p.mode(x)
	p.priority(x.Priority)
	p.update("update", x.Update)
	p.update("rollback", x.Rollback)
	if x.Rollback.GetFailureAction() == FailureAction_FAILURE_ACTION_ROLLBACK {
		p.add("rollback failure action", "a rollback cannot be rolled back", "use pause or continue")
	}
	p.moves(x)
	p.trial(x)
	p.ports("publish", x.GetEndpoint().GetPorts())
	known(&p, "endpoint mode", x.GetEndpoint().GetMode(), EndpointMode_name)
	if size := proto.Size(x); size > MaxSpecBytes {
		p.addf("service", fmt.Sprintf("at most %d are taken; move data into the image or a volume", MaxSpecBytes),
			"the spec has %d bytes", size)
	}
	return p.err()
}

// moves checks how many tasks may be down while others are moved, and whether they are moved for balance.
func (p *problems) moves(x *ServiceSpec) {
	other := x.GetMode() != nil && x.GetMode().GetReplicated() == nil
	if budget := x.GetMaxUnavailable(); budget != nil {
		const fix = "give a number of tasks, such as 1, or a share, such as 25%"
		switch most := budget.GetMost().(type) {
		case *DisruptionBudget_Count:
			if most.Count == 0 {
				p.add("max unavailable", "with 0 a drain would never end", "give at least 1")
			}
		case *DisruptionBudget_Percent:
			if most.Percent < 1 || most.Percent > 100 {
				p.addf("max unavailable", fix, "%d%% is not from 1%% to 100%%", most.Percent)
			}
		default:
			p.add("max unavailable", "it says neither how many nor which share", fix)
		}
		if other {
			p.addf("max unavailable", "leave it out", "only replicated services have a budget, this one is %s", x.GetMode().Name())
		}
	}
	if x.GetNoRebalance() && other {
		p.addf("no rebalance", "leave it out", "only tasks of replicated services are moved for balance, this one is %s", x.GetMode().Name())
	}
}

// labels checks labels that users set. Those of the system say what a container is, and cannot be overridden.
func (p *problems) labels(field string, labels map[string]string) {
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		named := fmt.Sprintf("%s %q", field, key)
		lower := strings.ToLower(key)
		switch {
		case strings.TrimSpace(key) == "":
			p.add(named, "the key is empty", "use KEY=VALUE")
		case strings.HasPrefix(lower, "com.docker.swarm.") || lower == "com.docker.swarm",
			strings.HasPrefix(lower, "containerd.io/") || strings.HasPrefix(lower, "containerd.io."),
			strings.HasPrefix(lower, "io.containerd."):
			p.add(named, "the key is the system's own", "choose another key")
		case hasNUL(key) || hasNUL(labels[key]):
			p.add(named, "it holds a NUL byte", "remove it")
		}
	}
}

func (p *problems) ports(what string, ports []*PortConfig) {
	if len(ports) > MaxPorts {
		p.addf(what, fmt.Sprintf("use at most %d, or several services", MaxPorts), "%d ports are too many", len(ports))
	}
	seen := make(map[publishedPort]bool)
	for i, port := range ports {
		field := fmt.Sprintf("%s %d", what, port.GetPublishedPort())
		if port.GetPublishedPort() == 0 {
			field = fmt.Sprintf("%s #%d (target %d)", what, i+1, port.GetTargetPort())
		}
		known(p, field+" protocol", port.GetProtocol(), Protocol_name)
		known(p, field+" mode", port.GetMode(), PublishMode_name)
		if port.GetTargetPort() < 1 || port.GetTargetPort() > MaxPort {
			p.addf(field, fmt.Sprintf("use 1 to %d", MaxPort), "the target port %d is not a port", port.GetTargetPort())
		}
		if port.GetPublishedPort() > MaxPort {
			p.addf(field, fmt.Sprintf("use 1 to %d, or none to have one chosen", MaxPort), "it is not a port")
		}
		known(p, field+" source", port.GetSource(), PublishSource_name)
		known(p, field+" affinity", port.GetAffinity(), Affinity_name)
		if host := port.GetMode() == PublishMode_PUBLISH_MODE_HOST; host && (port.GetSource() != 0 || port.GetAffinity() != 0) {
			p.add(field, "source and affinity are the ingress mesh's", "leave them out, or leave mode=host out")
		}
		if port.GetPublishedPort() == 0 {
			continue
		}
		if owner := ownPort(port.GetPublishedPort(), port.GetProtocol(), DefaultDataPathPort); owner != "" {
			p.add(field, "the port is that of "+owner, "choose another port")
		}
		key := publishedPort{port.GetPublishedPort(), port.GetProtocol().Name()}
		if seen[key] {
			p.addf(field, "publish each port once", "port %d/%s is published twice", key.port, key.protocol)
		}
		seen[key] = true
	}
}

func (p *problems) update(field string, config *UpdateConfig) {
	if config == nil {
		return
	}
	p.duration(field+" delay", config.Delay)
	known(p, field+" failure action", config.FailureAction, FailureAction_name)
	p.duration(field+" monitor", config.Monitor)
	if r := config.MaxFailureRatio; math.IsNaN(r) || r < 0 || r > 1 {
		p.addf(field+" max failure ratio", "use 0 to 1", "%v is not a share", r)
	}
	known(p, field+" order", config.Order, UpdateOrder_name)
	p.strategy(field, config)
}

// Validate checks what an operator may set of a node.
func (x *NodeSpec) Validate() error {
	var p problems
	known(&p, "role", x.GetDesiredRole(), NodeRole_name)
	known(&p, "availability", x.GetAvailability(), NodeAvailability_name)
	p.labels("label", x.GetLabels())
	return p.err()
}

// Validate checks the cluster's settings. Unset fields take their defaults.
func (x *ClusterSpec) Validate() error {
	var p problems
	p.fabric(x.GetFabricPool(), x.GetFabricBlockLength())
	p.duration("node certificate expiry", x.GetNodeCertExpiry())
	if d := x.GetNodeCertExpiry(); d != nil && d.AsDuration() >= 0 && d.AsDuration() < MinCertExpiry {
		p.addf("node certificate expiry", fmt.Sprintf("use %s or more", MinCertExpiry), "%s is too short", d.AsDuration())
	}
	if n := x.GetTaskHistoryLimit(); n > MaxTaskHistory {
		p.addf("task history limit", fmt.Sprintf("use at most %d", MaxTaskHistory), "%d ended tasks a replica are too many", n)
	}
	const rotation = "gossip key rotation"
	p.duration(rotation, x.GetGossipKeyRotation())
	switch d := x.GetGossipKeyRotation(); {
	case d == nil || d.CheckValid() != nil || d.AsDuration() < 0:
	case d.AsDuration() < MinGossipKeyRotation:
		p.addf(rotation, fmt.Sprintf("use %s or more", MinGossipKeyRotation), "%s is too short", d.AsDuration())
	case d.AsDuration() > MaxGossipKeyRotation:
		p.addf(rotation, fmt.Sprintf("use %s or less", MaxGossipKeyRotation), "%s is too long", d.AsDuration())
	}
	p.addressPools(x.GetDefaultAddrPools(), x.GetDefaultAddrPoolMaskLength())
	p.dataPathPort(x.GetDataPathPort())
	return p.err()
}

func (p *problems) fabric(pool string, blockLength uint32) {
	const fix = "use an IPv4 network such as 100.64.0.0/10"
	field := fmt.Sprintf("fabric pool %q", pool)
	bits := 0
	if pool != "" {
		prefix, err := netip.ParsePrefix(pool)
		switch {
		case err != nil || !prefix.Addr().Is4():
			p.add(field, "it is not an IPv4 network", fix)
			return
		case prefix.Masked() != prefix:
			p.add(field, "it has bits set beyond its length", "use "+prefix.Masked().String())
		case prefix.Addr().IsLoopback() || prefix.Addr().IsMulticast() || prefix.Addr().IsLinkLocalUnicast():
			p.add(field, "containers cannot have such addresses", fix)
		}
		bits = prefix.Bits()
	}
	// A block holds its network address, the gateway, containers and the broadcast address.
	if blockLength != 0 && (blockLength > 29 || int(blockLength) <= bits) {
		p.addf(fmt.Sprintf("fabric block length %d", blockLength), "use a length such as 24",
			"a node's block must be smaller than the pool and hold 8 addresses")
	}
}

// publishedPort is a published port for telling duplicates.
type publishedPort struct {
	port     uint32
	protocol string
}

func hasNUL(s string) bool { return strings.ContainsRune(s, 0) }
