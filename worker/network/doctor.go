package network

import (
	"context"
	"errors"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// look collects what does not work here, one line each; false: nothing can be said before Configure.
func (n *Network) look(err error) ([]string, bool) {
	n.mu.Lock()
	configured := n.configured
	n.mu.Unlock()
	if !configured {
		return nil, false
	}
	var problems []string
	for _, e := range flatten(err) {
		problems = append(problems, e.Error())
	}
	problems = append(problems, n.coexist.Check()...)
	return problems[:min(len(problems), maxProblems)], true
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

// Doctor looks at all that networks and published ports need on this host.
func (n *Network) Doctor(context.Context, func(*swarmpb.DoctorResponse) error) error { return nil }
