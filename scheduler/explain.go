package scheduler

import (
	"fmt"
	"strconv"
	"strings"
)

// Verdict is what the filters say of one node for the tasks of a group.
type Verdict struct {
	Node   string
	Filter Filter // Accepted: the node would take one
	// Detail says what is asked and what there is: needs 2 CPUs, 0.5 of 4 free.
	Detail string
}

// Explain judges every node for one more task of the group, by node ID, and changes nothing.
func (n *Nodes) Explain(g *Group) []Verdict {
	q := g.Requirements
	n.judge(q)
	out := make([]Verdict, len(n.nodes))
	for i := range n.nodes {
		node := &n.nodes[i]
		v := &out[i]
		v.Node, v.Filter = node.ID, n.fixed(q, int32(i))
		if v.Filter == Accepted {
			v.Filter = q.variable(node, g.OnNode[node.ID])
		}
		v.Detail = q.detail(node, v.Filter, g)
	}
	return out
}

func (q *Requirements) detail(n *Node, f Filter, g *Group) string {
	switch f {
	case Accepted:
		if g.Failing[n.ID] {
			return "suits, but comes last: the service has failed here again and again of late"
		}
		return "suits"
	case NotReady:
		return "is down, or takes no new tasks"
	case Constrained:
		for i := range q.Constraints {
			if c := &q.Constraints[i]; !c.Match(n) {
				return c.text + ": " + c.refusal(n)
			}
		}
	case WrongPlatform:
		var want []string
		for _, p := range q.Platforms {
			want = append(want, p.OS+"/"+p.Arch)
		}
		return fmt.Sprintf("the image is for %s, the node is %s/%s", strings.Join(want, ", "), n.OS, n.Arch)
	case CannotEncrypt:
		return "a network of the service is encrypted, and the node has no WireGuard"
	case Insufficient:
		var short []string
		if q.Reserve.NanoCPUs > n.Free.NanoCPUs {
			unit := "CPUs"
			if q.Reserve.NanoCPUs == 1e9 {
				unit = "CPU"
			}
			short = append(short, fmt.Sprintf("needs %s %s, %s of %s free", cpus(q.Reserve.NanoCPUs), unit, cpus(n.Free.NanoCPUs), cpus(n.Capacity.NanoCPUs)))
		}
		if q.Reserve.MemoryBytes > n.Free.MemoryBytes {
			short = append(short, fmt.Sprintf("needs %s of memory, %s of %s free", mebibytes(q.Reserve.MemoryBytes), mebibytes(n.Free.MemoryBytes), mebibytes(n.Capacity.MemoryBytes)))
		}
		return strings.Join(short, "; ")
	case NoGeneric:
		for _, w := range q.Generic {
			g := n.generic(w.Kind)
			if g == nil {
				return fmt.Sprintf("needs %d of %s, the node has none", w.Count, w.Kind)
			}
			if have := max(g.left(), 0); have < w.Count {
				return fmt.Sprintf("needs %d of %s, %d free", w.Count, w.Kind, have)
			}
		}
	case PortInUse:
		for _, p := range q.Ports {
			if n.Ports[p] {
				return fmt.Sprintf("port %d/%s is in use", p.Number, p.Protocol.Name())
			}
		}
	case TooManyReplicas:
		return fmt.Sprintf("has %d of the service's tasks, at most %d may be on a node", g.OnNode[n.ID], q.MaxPerNode)
	}
	return ""
}

// refusal says why a node that does not satisfy the constraint does not.
func (c *Constraint) refusal(n *Node) string {
	value := c.attribute.Of(n)
	said, differs := c.attribute.said(n)
	switch {
	case differs && c.holds(value):
		return fmt.Sprintf("the node says %q of itself", said)
	case differs && c.holds(said):
		return fmt.Sprintf("the node says %q of itself, which is not accepted (`swarmctl node update --accept`)", said)
	case value != "":
		return fmt.Sprintf("the node has %q", value)
	}
	return "the node has none"
}

func cpus(nano int64) string { return strconv.FormatFloat(float64(nano)/1e9, 'f', -1, 64) }

func mebibytes(b int64) string {
	return strconv.FormatFloat(float64(b/(1<<10))/(1<<10), 'f', -1, 64) + " MiB"
}
