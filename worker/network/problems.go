package network

import (
	"errors"
	"fmt"
	"slices"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// look collects what does not work here, one line each; false: nothing can be said before Configure.
func (n *Network) look(err error) ([]string, bool) {
	n.mu.Lock()
	configured, own, ipv6 := n.configured, n.ownAddress(), n.place.prefix6.IsValid()
	apart := apartLine(n.apart(), own)
	n.mu.Unlock()
	if !configured {
		return nil, false
	}
	problems := slices.Clone(n.lacking())
	if mtu, err := underlayMTU(own); err == nil && ipv6 && n.cfg.MTU == 0 && mtu < swarmpb.MinMTU6 {
		problems = append(problems, fmt.Sprintf("the link to the other nodes has an MTU of %d, so large packets between them travel in two parts; set it to %d or more",
			mtu+overheadOf(own), swarmpb.MinMTU6+overheadOf(own)))
	}
	if apart != "" {
		problems = append(problems, apart)
	}
	for _, e := range flatten(err) {
		problems = append(problems, e.Error())
	}
	problems = append(problems, n.coexist.Check()...)
	slices.Sort(problems)
	problems = slices.Compact(problems)
	return problems[:min(len(problems), maxProblems)], true
}

// lacking are lines of what the kernel lacks, found out by trying at the first call.
func (n *Network) lacking() []string {
	n.status.Lock()
	defer n.status.Unlock()
	if n.tried {
		return n.lacks
	}
	n.tried = true
	for _, a := range n.attempts {
		if err := apart(a.try); err != nil {
			n.lacks = append(n.lacks, fmt.Sprintf("%s does not work: %s; %s need it; use a kernel with %s", a.name, explainKernel(err), a.needed, a.option))
		}
	}
	return n.lacks
}

// flatten are the single errors of a joined one.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) {
		return []error{err}
	}
	var out []error
	for _, e := range joined.Unwrap() {
		out = append(out, flatten(e)...)
	}
	return out
}
