package lab

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// DockerFirewall puts the chains that Docker makes through iptables on the host, in the form that iptables-nft gives them: what is
// forwarded is dropped unless Docker's own bridge or the administrator's chain, DOCKER-USER, accepts it.
func (h *Host) DockerFirewall() error {
	return h.Inside(func() error {
		c, err := nftables.New()
		if err != nil {
			return fmt.Errorf("make Docker's rules: %w", err)
		}
		for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
			dockerFilter(c, family)
		}
		if err := c.Flush(); err != nil {
			return fmt.Errorf("make Docker's rules: %w", err)
		}
		return nil
	})
}

func dockerFilter(c *nftables.Conn, family nftables.TableFamily) {
	table := c.AddTable(&nftables.Table{Name: "filter", Family: family})
	drop := nftables.ChainPolicyDrop
	user := c.AddChain(&nftables.Chain{Name: "DOCKER-USER", Table: table})
	docker := c.AddChain(&nftables.Chain{Name: "DOCKER-FORWARD", Table: table})
	forward := c.AddChain(&nftables.Chain{
		Name: "FORWARD", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward,
		Priority: nftables.ChainPriorityFilter, Policy: &drop,
	})
	rule := func(chain *nftables.Chain, exprs ...expr.Any) {
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append([]expr.Any{}, exprs...)})
	}
	bridge := make([]byte, 16)
	copy(bridge, "docker0\x00")
	link := func(key expr.MetaKey) []expr.Any {
		return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: bridge}}
	}
	rule(forward, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictJump, Chain: user.Name})
	rule(forward, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictJump, Chain: docker.Name})
	rule(user, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictReturn})
	for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
		rule(docker, append(link(key), &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept})...)
	}
}
