package scheduler

// Suits runs the filters that nothing on the node can change, whether or not it takes new tasks now: constraints,
// platform, encryption. It is how the modes with a task on every node tell which these are.
func (q *Requirements) Suits(n *Node) Filter {
	like := *n
	like.Ready = true
	if verdict := q.ofClass(&like); verdict != Accepted {
		return verdict
	}
	for i := range q.Constraints {
		if c := &q.Constraints[i]; c.own() && !c.Match(n) {
			return Constrained
		}
	}
	return Accepted
}
