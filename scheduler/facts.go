package scheduler

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Taken is what the cluster takes a node to be: what a user has accepted or, unless somebody has, what it said when it
// first connected. Of a node without either what it says now counts. It is read-only, and never nil.
func Taken(node *swarmpb.Node, status *swarmpb.NodeStatus) *swarmpb.NodeFacts {
	if facts := taken(node, status); facts != nil {
		return facts
	}
	return Said(status)
}

// taken is nil when what the node says counts.
func taken(node *swarmpb.Node, status *swarmpb.NodeStatus) *swarmpb.NodeFacts {
	if accepted := node.GetSpec().GetAccepted(); accepted != nil {
		return accepted
	}
	return status.GetFirst()
}

// Said is what a node says of itself now, in a copy: what accepting it comes to.
func Said(status *swarmpb.NodeStatus) *swarmpb.NodeFacts { return status.GetDescription().Facts() }

// self is what a node says of itself where that is not what the cluster takes it to be.
type self struct {
	hostname, os, arch string
	labels             map[string]string
}

// apply sets what the node is taken to be, and keeps what it says beside that where they differ.
func (n *Node) apply(facts *swarmpb.NodeFacts, d *swarmpb.NodeDescription) {
	n.Hostname, n.OS, n.Arch = d.GetHostname(), d.GetPlatform().GetOs(), d.GetPlatform().GetArchitecture()
	n.EngineLabels = d.GetEngine().GetLabels()
	has := d.GetResources()
	n.Capacity = Resources{NanoCPUs: has.GetNanoCpus(), MemoryBytes: has.GetMemoryBytes()}
	n.Generic = newGeneric(has.GetGeneric())
	if facts != nil {
		says := self{hostname: n.Hostname, os: n.OS, arch: n.Arch, labels: n.EngineLabels}
		n.Hostname, n.OS, n.Arch = facts.GetHostname(), facts.GetPlatform().GetOs(), facts.GetPlatform().GetArchitecture()
		n.EngineLabels = facts.GetEngineLabels()
		if says.hostname != n.Hostname || says.os != n.OS || says.arch != n.Arch || !maps.Equal(says.labels, n.EngineLabels) {
			n.says = &says
		}
		may := facts.GetResources()
		n.Capacity.NanoCPUs = min(n.Capacity.NanoCPUs, may.GetNanoCpus())
		n.Capacity.MemoryBytes = min(n.Capacity.MemoryBytes, may.GetMemoryBytes())
		n.Generic = lesser(n.Generic, may.GetGeneric())
	}
	n.Free = n.Capacity
}

// lesser is what a node says it has of generic resources as far as that was taken: of names those that are in both, else the
// lower count. Where one of them has names and the other a count, so many of them.
func lesser(has []Generic, may []*swarmpb.GenericResource) []Generic {
	if len(has) == 0 {
		return nil
	}
	allowed := newGeneric(may)
	var out []Generic
	for _, g := range has {
		a := find(allowed, g.Kind)
		switch {
		case a == nil:
			continue
		case g.named && a.named:
			g.Names = slices.DeleteFunc(g.Names, func(name string) bool {
				_, ok := slices.BinarySearch(a.Names, name)
				return !ok
			})
		case g.named:
			g.Names = g.Names[:min(a.Count, int64(len(g.Names)))]
		default:
			g.Count = min(g.Count, a.left())
		}
		out = append(out, g)
	}
	return out
}

// Same tells whether no filter can tell the nodes apart by anything but what tasks take of them.
func (n *Node) Same(other *Node) bool {
	return alike(n, other) && n.Hostname == other.Hostname && n.Address == other.Address
}

// Left is what no task reserves; below 0 where too much was given away.
func (n *Node) Left() *swarmpb.Resources {
	left := &swarmpb.Resources{NanoCpus: n.Free.NanoCPUs, MemoryBytes: n.Free.MemoryBytes}
	for i := range n.Generic {
		g := &n.Generic[i]
		generic := &swarmpb.GenericResource{Kind: g.Kind, Instances: slices.Clone(g.Names)}
		if !g.named {
			generic.Count = g.Count
		}
		left.Generic = append(left.Generic, generic)
	}
	return left
}

// NotAccepted tells what a node says of itself beyond what the cluster takes it to be, one line each: 16 CPUs, 8 are taken.
func NotAccepted(node *swarmpb.Node, status *swarmpb.NodeStatus) []string {
	facts := taken(node, status)
	if facts == nil {
		return nil
	}
	said := Said(status)
	var out []string
	differs := func(what, says, is string) {
		if says != is {
			out = append(out, fmt.Sprintf("%s %s, %s is taken", what, says, cmp.Or(is, "none")))
		}
	}
	platform := func(p *swarmpb.Platform) string { return p.GetOs() + "/" + architecture(p.GetArchitecture()) }
	differs("hostname", said.GetHostname(), facts.GetHostname())
	differs("platform", platform(said.GetPlatform()), platform(facts.GetPlatform()))
	has, may := said.GetResources(), facts.GetResources()
	if has.GetNanoCpus() > may.GetNanoCpus() {
		out = append(out, fmt.Sprintf("%s CPUs, %s are taken", cpus(has.GetNanoCpus()), cpus(may.GetNanoCpus())))
	}
	// What the kernel keeps for itself differs from boot to boot.
	if has.GetMemoryBytes()-may.GetMemoryBytes() > may.GetMemoryBytes()/64 {
		out = append(out, fmt.Sprintf("%s of memory, %s are taken", mebibytes(has.GetMemoryBytes()), mebibytes(may.GetMemoryBytes())))
	}
	out = append(out, genericNotAccepted(newGeneric(has.GetGeneric()), newGeneric(may.GetGeneric()))...)
	for _, key := range slices.Sorted(maps.Keys(said.GetEngineLabels())) {
		says := said.GetEngineLabels()[key]
		if is, ok := facts.GetEngineLabels()[key]; !ok {
			out = append(out, fmt.Sprintf("engine label %s=%s", key, says))
		} else if is != says {
			out = append(out, fmt.Sprintf("engine label %s=%s, %q is taken", key, says, is))
		}
	}
	return out
}

func genericNotAccepted(has, may []Generic) []string {
	var out []string
	for i := range has {
		g, allowed := &has[i], find(may, has[i].Kind)
		switch {
		case allowed == nil && g.left() == 0:
		case g.named && (allowed == nil || allowed.named):
			more := g.Names
			if allowed != nil {
				more = without(g.Names, allowed.Names)
			}
			if len(more) > 0 {
				out = append(out, fmt.Sprintf("%s: %s", g.Kind, list(more)))
			}
		case allowed == nil:
			out = append(out, fmt.Sprintf("%d of %s", g.left(), g.Kind))
		case g.left() > allowed.left():
			out = append(out, fmt.Sprintf("%d of %s, %d are taken", g.left(), g.Kind, allowed.left()))
		}
	}
	return out
}

// list names at most 8.
func list(names []string) string {
	const shown = 8
	if len(names) <= shown {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:shown], ", "), len(names)-shown)
}
