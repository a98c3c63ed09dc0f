package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func (a *app) prettyNode(w io.Writer, n *swarmpb.NodeInfo) {
	node, status := n.GetNode(), n.GetStatus()
	d := status.GetDescription()
	p := printer{w: w, width: len("Engine labels:")}
	p.line("ID", node.GetId())
	p.line("Hostname", d.GetHostname())
	p.line("Role", roleText(node.GetRole().Name(), desiredRole(n).Name()))
	if m := n.GetManager(); m != nil {
		p.line("Manager", strings.TrimSuffix(capital(managerStatus(n))+", "+m.GetAddress(), ", "))
	}
	p.line("Availability", availability(n))
	a.prettyDrain(p, n)
	p.line("State", strings.TrimSpace(nodeState(n)+" "+a.ago(status.GetSince())))
	p.line("Message", nodeMessage(n))
	p.line("Labels", pairs(node.GetSpec().GetLabels()))
	p.line("Engine labels", engineLabels(n))
	p.line("Joined", a.ago(node.GetMeta().GetCreatedAt()))
	p.line("Address", status.GetAddress())
	p.line("Uplink block", n.GetUplinkBlock())
	p.line("Platform", platformText(d.GetPlatform()))
	p.line("Version", d.GetEngine().GetVersion())
	p.line("containerd", d.GetEngine().GetContainerdVersion())
	p.line("OCI runtime", d.GetEngine().GetOciRuntime())
	p.line("Encrypts in", encrypter(d.GetNetwork()))
	p.line("Tasks", fmt.Sprint(n.GetTasks()))
	prettyResources(p, n)
	p.line("Certificate", a.until(node.GetCertificateExpiresAt()))
	p.lines("NOT ACCEPTED", n.GetNotAccepted())
	if len(n.GetNotAccepted()) > 0 {
		p.line("To accept", "`swarmctl node update --accept "+d.GetHostname()+"`; until then it counts for nothing")
	}
	p.lines("PROBLEM", d.GetNetwork().GetProblems())
	for _, c := range d.GetNetwork().GetConflicts() {
		p.line("CONFLICT", conflictText(&swarmpb.NodePortConflict{NodeId: node.GetId(), Hostname: d.GetHostname(), Conflict: c}))
	}
}

// prettyDrain is how far the drain of a node is, and why tasks wait.
func (a *app) prettyDrain(p printer, n *swarmpb.NodeInfo) {
	drain := n.GetDrain()
	if drain == nil {
		return
	}
	text := "done, no task is left"
	if drain.GetLeft() > 0 {
		text = drainText(drain)
	}
	if since := a.ago(drain.GetSince()); since != "" {
		text += ", begun " + since
	}
	p.line("Drain", text)
	p.lines("Drain waits", drain.GetWaits())
}

// engineLabels are those that the node has itself; those that the cluster has not taken do not count.
func engineLabels(n *swarmpb.NodeInfo) string {
	accepted := n.GetNode().GetSpec().GetAccepted().GetEngineLabels()
	labels := n.GetStatus().GetDescription().GetEngine().GetLabels()
	var out []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		text := k + "=" + labels[k]
		if value, ok := accepted[k]; !ok || value != labels[k] {
			text += " (not accepted)"
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}

// prettyResources is what a node has, as far as the cluster takes its word for it, what tasks reserve and what is free.
func prettyResources(p printer, n *swarmpb.NodeInfo) {
	taken, free, says := n.GetReserved(), n.GetFree(), n.GetStatus().GetDescription().GetResources()
	if says == nil {
		return
	}
	if free == nil { // a manager that does not tell: all that the node says counts
		p.line("CPUs", share(says.GetNanoCpus(), taken.GetNanoCpus(), cpus))
		p.line("Memory", share(says.GetMemoryBytes(), taken.GetMemoryBytes(), memory))
		return
	}
	p.line("CPUs", share(free.GetNanoCpus()+taken.GetNanoCpus(), taken.GetNanoCpus(), cpus))
	p.line("Memory", share(free.GetMemoryBytes()+taken.GetMemoryBytes(), taken.GetMemoryBytes(), memory))
	p.lines("Generic", genericShares(taken.GetGeneric(), free.GetGeneric()))
}

// share says how much of something is taken; a node may have shrunk below what is.
func share(has, taken int64, text func(int64) string) string {
	if left := has - taken; left < 0 {
		return fmt.Sprintf("%s, %s reserved, which is %s too much", text(max(has, 0)), text(taken), text(-left))
	}
	return fmt.Sprintf("%s, %s reserved, %s free", text(has), text(taken), text(has-taken))
}

// genericShares are the generic resources by kind: gpu: 3, 1 reserved (u1), 2 free (u2, u3).
func genericShares(reserved, free []*swarmpb.GenericResource) []string {
	type both struct{ reserved, free *swarmpb.GenericResource }
	kinds := map[string]both{}
	for _, g := range reserved {
		kinds[g.GetKind()] = both{reserved: g}
	}
	for _, g := range free {
		kinds[g.GetKind()] = both{kinds[g.GetKind()].reserved, g}
	}
	amount := func(g *swarmpb.GenericResource) (n int64, text string) {
		n = max(g.GetCount(), int64(len(g.GetInstances())))
		if names := g.GetInstances(); len(names) > 0 {
			text = " (" + strings.Join(slices.Sorted(slices.Values(names)), ", ") + ")"
		}
		return n, text
	}
	var out []string
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		taken, names := amount(kinds[kind].reserved)
		left, freeNames := amount(kinds[kind].free)
		out = append(out, fmt.Sprintf("%s: %d, %d reserved%s, %d free%s", kind, taken+left, taken, names, left, freeNames))
	}
	return out
}

// encrypter is what encrypts networks on a node; empty where nothing can.
func encrypter(n *swarmpb.NodeNetwork) string {
	switch n.GetWireguard() {
	case "kernel":
		return "the kernel"
	case "userspace":
		return "a process"
	}
	return n.GetWireguard()
}
