package network

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// foreign makes a firewall that drops what is forwarded; as Docker's, with a chain for users. It goes with the test.
func foreign(t *testing.T, family nftables.TableFamily, table, forward string, docker bool) {
	t.Helper()
	conn, err := nftables.New()
	must(t, err)
	x := conn.AddTable(&nftables.Table{Name: table, Family: family})
	drop := nftables.ChainPolicyDrop
	chain := conn.AddChain(&nftables.Chain{Name: forward, Table: x, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop})
	if docker {
		users := conn.AddChain(&nftables.Chain{Name: "DOCKER-USER", Table: x})
		conn.AddRule(&nftables.Rule{Table: x, Chain: chain, Exprs: []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictJump, Chain: "DOCKER-USER"}}})
		conn.AddRule(&nftables.Rule{Table: x, Chain: users, Exprs: []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictReturn}}})
	}
	must(t, conn.Flush())
	t.Cleanup(func() { must(t, deleteTable(family, table)) })
}

// rulesOf counts the rules of a chain.
func rulesOf(t *testing.T, family nftables.TableFamily, table, chain string) int {
	t.Helper()
	conn, err := nftables.New()
	must(t, err)
	x := &nftables.Table{Name: table, Family: family}
	rules, err := conn.GetRules(x, &nftables.Chain{Name: chain, Table: x})
	must(t, err)
	return len(rules)
}

func TestCoexist_ForeignForwardPolicyDrop_PublishedPortWorksAndNothingIsLeft(t *testing.T) {
	for _, c := range []struct {
		name, chain string
		docker      bool
	}{{"Docker", "DOCKER-USER", true}, {"ufw", "FORWARD", false}} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			a := l.attach(t, "webtask000000000000000001")
			serve(t, a, "web")
			_, err := l.Publish(t.Context(), "webtask000000000000000001", []*swarmpb.PortConfig{{TargetPort: 80, PublishedPort: 8080}})
			must(t, err)
			foreign(t, nftables.TableFamilyIPv4, "filter", "FORWARD", c.docker)
			before := rulesOf(t, nftables.TableFamilyIPv4, "filter", c.chain)
			if got, err := get(l.client, "10.99.0.1:8080"); err == nil {
				t.Fatalf("the foreign policy lets pass: %q", got)
			}
			for range 2 {
				must(t, l.Check(t.Context()))
			}
			wants(t, l.client, "10.99.0.1:8080", "web 10.99.0.2")
			if got := rulesOf(t, nftables.TableFamilyIPv4, "filter", c.chain); got != before+6 {
				t.Errorf("%s has %d rules, before %d; want one a link and direction", c.chain, got, before)
			}
			must(t, l.Teardown(t.Context()))
			if got := rulesOf(t, nftables.TableFamilyIPv4, "filter", c.chain); got != before {
				t.Errorf("%s has %d rules after the teardown, before %d", c.chain, got, before)
			}
		})
	}
}

func TestCoexist_AdministratorsOwnChainDrops_ProblemNamesTheRules(t *testing.T) {
	l := newLab(t)
	foreign(t, nftables.TableFamilyINet, "mine", "fwd", false)
	must(t, l.Check(t.Context()))
	problem := strings.Join(l.Status().Problems, "\n")
	if !strings.Contains(problem, `nft insert rule inet mine fwd iifname "u-*" accept`) {
		t.Errorf("problems are %q", problem)
	}
	conn, err := nftables.New()
	must(t, err)
	x := &nftables.Table{Name: "mine", Family: nftables.TableFamilyINet}
	for _, name := range []string{"u-", Uplink + "\x00", Fabric + "\x00"} {
		for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
			conn.InsertRule(&nftables.Rule{Table: x, Chain: &nftables.Chain{Name: "fwd", Table: x},
				Exprs: []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(name)}, &expr.Verdict{Kind: expr.VerdictAccept}}})
		}
	}
	must(t, conn.Flush())
	must(t, l.Check(t.Context()))
	if got := l.Status().Problems; len(got) != 0 {
		t.Errorf("problems after the rules were added: %q", got)
	}
}

func TestStatus_RoutesOfTheHost_NotOurs(t *testing.T) {
	l, _ := repairLab(t)
	routes := l.Status().Routes
	if !slices.Equal(routes, []string{"10.99.0.0/24"}) {
		t.Errorf("routes are %q", routes)
	}
	select {
	case <-l.Changes():
		t.Error("it tells of changes before the first check")
	default:
	}
	must(t, l.Check(t.Context()))
	<-l.Changes()
	must(t, l.Check(t.Context()))
	select {
	case <-l.Changes():
		t.Error("it tells of changes where there are none")
	default:
	}
}
