package coexist

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// comment marks rules of ours.
const comment = "swarmd"

// ifNameSize is IFNAMSIZ: a name is compared with its final zeros, a prefix without.
const ifNameSize = 16

// nft looks after tables of nftables, those that iptables-nft makes among them.
type nft struct{ links []string }

func (*nft) name() string { return "nftables" }

// forwardChain is a chain on the forward hook that drops what it does not know.
type forwardChain struct {
	chain *nftables.Chain
	rules []*nftables.Rule
}

func (n *nft) open() (added int, problems []string, err error) {
	conn, err := nftables.New()
	if err != nil {
		return 0, nil, err
	}
	found, err := dropping(conn)
	if err != nil {
		return 0, nil, err
	}
	for _, f := range found {
		if !isIPTables(f.chain) {
			if missing := n.missing(f.rules, false); len(missing) > 0 {
				problems = append(problems, n.advice(f.chain, missing))
			}
			continue
		}
		place, rules, err := n.place(conn, f)
		if err != nil {
			return 0, problems, err
		}
		for _, m := range n.missing(rules, true) {
			conn.InsertRule(&nftables.Rule{Table: place.Table, Chain: place, Exprs: m.exprs(), UserData: userdata.AppendString(nil, userdata.TypeComment, comment)})
			added++
		}
	}
	if added == 0 {
		return 0, problems, nil
	}
	if err := conn.Flush(); err != nil {
		return 0, problems, fmt.Errorf("insert rules: %w", err)
	}
	return added, problems, nil
}

// dropping finds the foreign chains of the forward hook that drop or reject: by policy, or by a rule.
func dropping(conn *nftables.Conn) ([]forwardChain, error) {
	chains, err := conn.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	var out []forwardChain
	for _, c := range chains {
		switch c.Table.Family {
		case nftables.TableFamilyIPv4, nftables.TableFamilyIPv6, nftables.TableFamilyINet:
		default:
			continue
		}
		if c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookForward || c.Type != nftables.ChainTypeFilter || strings.HasPrefix(c.Table.Name, comment) || c.Table.Name == "firewalld" {
			continue
		}
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return nil, fmt.Errorf("list rules of %s: %w", describe(c), err)
		}
		if c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop || refusesAll(rules) {
			out = append(out, forwardChain{chain: c, rules: rules})
		}
	}
	return out, nil
}

// refusesAll tells whether a rule without any condition drops or rejects.
func refusesAll(rules []*nftables.Rule) bool {
	for _, r := range rules {
		conditional, refuses := false, false
		for _, e := range r.Exprs {
			switch e := e.(type) {
			case *expr.Counter:
			case *expr.Verdict:
				refuses = refuses || e.Kind == expr.VerdictDrop
			case *expr.Reject:
				refuses = true
			default:
				conditional = true
			}
		}
		if refuses && !conditional {
			return true
		}
	}
	return false
}

// isIPTables tells whether iptables made a chain: others do not name theirs so.
func isIPTables(c *nftables.Chain) bool {
	return c.Table.Family != nftables.TableFamilyINet && c.Table.Name == "filter" && c.Name == "FORWARD"
}

// place is where accepts belong: Docker's chain for its users, where FORWARD begins with it, else FORWARD.
func (n *nft) place(conn *nftables.Conn, f forwardChain) (*nftables.Chain, []*nftables.Rule, error) {
	const forUsers = "DOCKER-USER"
	for _, r := range f.rules {
		if ours(r) {
			continue
		}
		for _, e := range r.Exprs {
			if v, ok := e.(*expr.Verdict); ok && v.Kind == expr.VerdictJump && v.Chain == forUsers {
				chain := &nftables.Chain{Name: forUsers, Table: f.chain.Table}
				rules, err := conn.GetRules(f.chain.Table, chain)
				if err != nil {
					return nil, nil, fmt.Errorf("list rules of %s: %w", describe(chain), err)
				}
				return chain, rules, nil
			}
		}
		break
	}
	return f.chain, f.rules, nil
}

// match is one accept: packets that come in by a link, or go out by it.
type match struct {
	key  expr.MetaKey
	link string
}

func (m match) exprs() []expr.Any {
	return []expr.Any{&expr.Meta{Key: m.key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: m.data()}, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept}}
}

func (m match) data() []byte {
	if prefix, ok := strings.CutSuffix(m.link, "*"); ok {
		return []byte(prefix)
	}
	return append([]byte(m.link), make([]byte, ifNameSize-len(m.link))...)
}

// missing are the accepts that the rules lack; only ours count, or anybody's.
func (n *nft) missing(rules []*nftables.Rule, oursAlone bool) []match {
	var out []match
	for _, link := range n.links {
		for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
			m, found := match{key, link}, false
			for _, r := range rules {
				found = found || (!oursAlone || ours(r)) && m.in(r)
			}
			if !found {
				out = append(out, m)
			}
		}
	}
	return out
}

// in tells whether a rule is this accept.
func (m match) in(r *nftables.Rule) bool {
	key, compared, accepts := false, false, false
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Meta:
			key = key || e.Key == m.key
		case *expr.Cmp:
			compared = compared || e.Op == expr.CmpOpEq && bytes.Equal(bytes.TrimRight(e.Data, "\x00"), bytes.TrimRight(m.data(), "\x00"))
		case *expr.Verdict:
			accepts = accepts || e.Kind == expr.VerdictAccept
		}
	}
	return key && compared && accepts
}

func ours(r *nftables.Rule) bool {
	text, ok := userdata.GetString(r.UserData, userdata.TypeComment)
	return ok && text == comment
}

// advice names the rules to add to a chain that somebody wrote by hand.
func (n *nft) advice(c *nftables.Chain, missing []match) string {
	var rules []string
	for _, m := range missing {
		direction := "iifname"
		if m.key == expr.MetaKeyOIFNAME {
			direction = "oifname"
		}
		rules = append(rules, fmt.Sprintf("nft insert rule %s %s %q accept", describe(c), direction, m.link))
	}
	return fmt.Sprintf("nftables chain %s drops what the cluster forwards; add to it: %s", describe(c), strings.Join(rules, "; "))
}

// describe is a chain in nft's words.
func describe(c *nftables.Chain) string {
	family := map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet"}[c.Table.Family]
	return family + " " + c.Table.Name + " " + c.Name
}

func (n *nft) close() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	chains, err := conn.ListChains()
	if err != nil {
		return fmt.Errorf("list chains: %w", err)
	}
	changed := false
	for _, c := range chains {
		if c.Table.Name != "filter" || c.Table.Family != nftables.TableFamilyIPv4 && c.Table.Family != nftables.TableFamilyIPv6 {
			continue
		}
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return fmt.Errorf("list rules of %s: %w", describe(c), err)
		}
		for _, r := range rules {
			if !ours(r) {
				continue
			}
			if err := conn.DelRule(r); err != nil {
				return fmt.Errorf("delete rule: %w", err)
			}
			changed = true
		}
	}
	if !changed {
		return nil
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("delete rules: %w", err)
	}
	return nil
}
