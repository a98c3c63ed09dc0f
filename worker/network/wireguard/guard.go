package wireguard

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// VXLANPort is the UDP port of encrypted networks' VXLAN devices, and of nothing else: so what goes there, or comes from
// there, outside of the tunnel can be told without knowing any network, and is dropped before there is one.
const VXLANPort = swarmpb.TunnelVXLANPort

// Table is the nftables table (inet) that drops what has to go through the tunnel and does not.
const Table = "swarmd-tunnel"

// loadGuard loads the table in one transaction, in place of a former one:
//
//	output   to VXLANPort, not into the tunnel: drop      nothing leaves in plain text, whatever the routes say
//	input    to VXLANPort, not from the tunnel: drop      nobody puts packets into an encrypted network from outside
//	forward  into or from the tunnel: drop                only nodes themselves speak through it, tasks never
func loadGuard() error {
	conn := &nftables.Conn{}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: Table}
	conn.AddTable(table)
	conn.DelTable(table)
	conn.AddTable(table)
	chain := func(name string, hook *nftables.ChainHook) *nftables.Chain {
		return conn.AddChain(&nftables.Chain{Name: name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityRaw})
	}
	drop := &expr.Verdict{Kind: expr.VerdictDrop}
	rule := func(chain *nftables.Chain, match ...expr.Any) {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(match, drop)})
	}
	toVXLAN := func(link ...expr.Any) []expr.Any {
		const port, length = 2, 2 // of the destination, in a header of UDP
		return append([]expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: port, Len: length},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(VXLANPort)},
		}, link...)
	}
	tunnel := func(key expr.MetaKey, op expr.CmpOp) []expr.Any {
		name := make([]byte, unix.IFNAMSIZ)
		copy(name, Link)
		return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: name}}
	}
	rule(chain("output", nftables.ChainHookOutput), toVXLAN(tunnel(expr.MetaKeyOIFNAME, expr.CmpOpNeq)...)...)
	rule(chain("input", nftables.ChainHookInput), toVXLAN(tunnel(expr.MetaKeyIIFNAME, expr.CmpOpNeq)...)...)
	forward := chain("forward", nftables.ChainHookForward)
	rule(forward, tunnel(expr.MetaKeyOIFNAME, expr.CmpOpEq)...)
	rule(forward, tunnel(expr.MetaKeyIIFNAME, expr.CmpOpEq)...)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("load nftables table %s: %w", Table, err)
	}
	return nil
}

// guarded tells whether the table is there, with its rules.
func guarded() bool {
	conn := &nftables.Conn{}
	want := map[string]int{"output": 1, "input": 1, "forward": 2}
	for name, count := range want {
		rules, err := conn.GetRules(&nftables.Table{Family: nftables.TableFamilyINet, Name: Table}, &nftables.Chain{Name: name})
		if err != nil || len(rules) != count {
			return false
		}
	}
	return true
}

func removeGuard() error {
	conn := &nftables.Conn{}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: Table}
	conn.AddTable(table) // so that there is one to delete
	conn.DelTable(table)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("remove nftables table %s: %w", Table, err)
	}
	return nil
}
