package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/swarmd/swarmd/worker/doctor"
)

// attempt tries a feature of the kernel in a namespace of its own.
type attempt struct {
	name string
	try  func() error
	// needed by what, and option is what the kernel lacks without it.
	needed, option string
}

// attempts are the features that networks and published ports are made of.
func attempts() []attempt {
	const published, overlays = "published ports", "networks"
	rule := func(kind nftables.ChainType, hook *nftables.ChainHook, exprs ...expr.Any) func() error {
		return func() error { return tryRule(nftables.TableFamilyINet, kind, hook, "", exprs) }
	}
	load := func(reg uint32) expr.Any {
		return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}
	}
	return []attempt{
		{"kernel vxlan", attemptLink(&netlink.Vxlan{LinkAttrs: attrs("dr-vx"), VxlanId: 1, Port: 4789}), overlays, "CONFIG_VXLAN (modprobe vxlan)"},
		{"kernel bridge", attemptLink(&netlink.Bridge{LinkAttrs: attrs("dr-br")}), overlays, "CONFIG_BRIDGE (modprobe bridge)"},
		{"kernel veth", attemptLink(&netlink.Veth{LinkAttrs: attrs("dr-v0"), PeerName: "dr-v1"}), "every task", "CONFIG_VETH (modprobe veth)"},
		{"kernel nf_tables", rule(nftables.ChainTypeFilter, nftables.ChainHookForward, &expr.Counter{}), published, "CONFIG_NF_TABLES_INET (modprobe nf_tables)"},
		{"kernel nf_tables numgen", rule(nftables.ChainTypeFilter, nftables.ChainHookPrerouting,
			&expr.Numgen{Register: 1, Modulus: 16, Type: unix.NFT_NG_RANDOM}), published, "CONFIG_NFT_NUMGEN (modprobe nft_numgen)"},
		{"kernel nf_tables jhash", rule(nftables.ChainTypeFilter, nftables.ChainHookPrerouting, load(1),
			&expr.Hash{SourceRegister: 1, DestRegister: 2, Length: 4, Modulus: 16, Type: expr.HashTypeJenkins}), "affinity=client-ip", "CONFIG_NFT_HASH (modprobe nft_hash)"},
		{"kernel nf_tables dnat", rule(nftables.ChainTypeNAT, nftables.ChainHookPrerouting,
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}},
			&expr.Immediate{Register: 1, Data: []byte{127, 0, 0, 1}},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1}), published, "CONFIG_NFT_NAT and CONFIG_NF_NAT (modprobe nft_chain_nat)"},
		{"kernel nf_tables masquerade", rule(nftables.ChainTypeNAT, nftables.ChainHookPostrouting, &expr.Masq{}), "tasks that call out", "CONFIG_NFT_MASQ (modprobe nft_masq)"},
		{"kernel nf_tables reject", rule(nftables.ChainTypeFilter, nftables.ChainHookInput,
			&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}), published, "CONFIG_NFT_REJECT_INET (modprobe nft_reject_inet)"},
		{"kernel nf_tables netdev egress", func() error {
			return tryRule(nftables.TableFamilyNetdev, nftables.ChainTypeFilter, nftables.ChainHookEgress, "lo", []expr.Any{&expr.Counter{}})
		}, "published ports of services on other nodes", "CONFIG_NETFILTER_EGRESS (Linux 5.16)"},
		{"kernel nf_tables netdev ingress", func() error {
			return tryRule(nftables.TableFamilyNetdev, nftables.ChainTypeFilter, nftables.ChainHookIngress, "lo", []expr.Any{&expr.Counter{}})
		}, overlays, "CONFIG_NETFILTER_INGRESS and CONFIG_NF_TABLES_NETDEV"},
		{"kernel nf_tables fib", rule(nftables.ChainTypeFilter, nftables.ChainHookPrerouting,
			&expr.Fib{Register: 1, FlagSADDR: true, FlagIIF: true, ResultOIF: true}), published, "CONFIG_NFT_FIB_INET (modprobe nft_fib_inet)"},
		{"kernel conntrack tcp, udp", func() error { return tryTracking("tcp_timeout_established", "udp_timeout") }, published, "CONFIG_NF_CONNTRACK (modprobe nf_conntrack)"},
		{"kernel conntrack netlink", tryForgetting, "clients of tasks that have gone, whose connections end late without it,", "CONFIG_NF_CT_NETLINK (modprobe nf_conntrack_netlink)"},
		{"kernel conntrack sctp", func() error { return tryTracking("sctp_timeout_established") }, "published ports of SCTP", "CONFIG_NF_CT_PROTO_SCTP"},
	}
}

func attrs(name string) netlink.LinkAttrs {
	return netlink.LinkAttrs{Name: name, TxQLen: -1}
}

func attemptLink(link netlink.Link) func() error {
	return func() error { return netlink.LinkAdd(link) }
}

// tryRule loads a table with one rule.
func tryRule(family nftables.TableFamily, kind nftables.ChainType, hook *nftables.ChainHook, device string, exprs []expr.Any) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Family: family, Name: "doctor"})
	chain := c.AddChain(&nftables.Chain{Name: "c", Table: table, Type: kind, Hooknum: hook, Priority: nftables.ChainPriorityRef(0), Device: device})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
	return c.Flush()
}

// tryTracking has the kernel track connections, and sees whether it knows the protocols: each has settings of its own.
func tryTracking(settings ...string) error {
	if err := tryRule(nftables.TableFamilyINet, nftables.ChainTypeFilter, nftables.ChainHookInput, "", []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
	}); err != nil {
		return err
	}
	for _, s := range settings {
		if _, err := os.Stat("/proc/sys/net/netfilter/nf_conntrack_" + s); err != nil {
			return err
		}
	}
	return nil
}

// tryForgetting sees whether entries of connection tracking can be seen, and so deleted.
func tryForgetting() error {
	_, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	if errors.Is(err, unix.EINVAL) { // nfnetlink's answer for a part that it does not know
		return unix.EOPNOTSUPP
	}
	return err
}

// checks makes a check of each attempt.
func kernelChecks() []doctor.Check {
	var out []doctor.Check
	for _, a := range attempts() {
		out = append(out, doctor.Check{Name: a.name, Run: func(context.Context) doctor.Finding {
			if err := apart(a.try); err != nil {
				return doctor.Problem(fmt.Sprintf("does not work: %s; %s need it", explainKernel(err), a.needed), "use a kernel with "+a.option)
			}
			return doctor.OK("works")
		}})
	}
	return append(out, doctor.Check{Name: "kernel encryption", Run: func(context.Context) doctor.Finding { return encryption(apart(tryWireguard), apart(tryTun)) }})
}

// apart runs fn in a network namespace that goes with it.
func apart(fn func() error) error {
	return onThreadOfItsOwn(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		return fn()
	})
}

func tryWireguard() error { return netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs("dr-wg")}) }

func tryTun() error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/net/tun: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("dr-tun")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return fmt.Errorf("make a tun device: %w", err)
	}
	return nil
}

// encryption judges what there is to encrypt with.
func encryption(wireguard, tun error) doctor.Finding {
	const kernel = "use a kernel with CONFIG_WIREGUARD (Linux 5.6, modprobe wireguard)"
	switch {
	case wireguard == nil:
		return doctor.OK("WireGuard in the kernel")
	case tun == nil:
		return doctor.Warning("no WireGuard in the kernel: encrypted networks go through user space, at 2 to 11 % of the rate", kernel)
	}
	return doctor.Problem(fmt.Sprintf("neither WireGuard (%s) nor a tun device (%s): this node takes no tasks of encrypted networks",
		explainKernel(wireguard), explainKernel(tun)), kernel+", or with CONFIG_TUN (modprobe tun)")
}

// explainKernel says in words what the kernel's answer to something that it lacks means.
func explainKernel(err error) string {
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOENT), errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EPROTONOSUPPORT):
		return "this kernel does not have it"
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return "not permitted: swarmd has to run as root, with CAP_NET_ADMIN"
	}
	return err.Error()
}

// settingChecks look at settings of the host that others may change under us.
func (n *Network) settingChecks() []doctor.Check {
	read := func(name string) string {
		data, err := os.ReadFile("/proc/sys/net/" + name)
		if err != nil {
			return ""
		}
		return string(data[:max(0, len(data)-1)])
	}
	n.mu.Lock()
	configured := n.configured
	ipv6 := n.place.prefix6.IsValid()
	n.mu.Unlock()
	return []doctor.Check{
		{Name: "ip_forward", Run: func(context.Context) doctor.Finding {
			switch {
			case !configured:
				return doctor.OK("set when this host has joined a cluster")
			case read("ipv4/ip_forward") != "1":
				return doctor.Problem("off: no packet gets from or to a task", "sysctl -w net.ipv4.ip_forward=1, and see what turns it off (/etc/sysctl.d)")
			case ipv6 && read("ipv6/conf/all/forwarding") != "1":
				return doctor.Problem("off for IPv6: no packet of it gets from or to a task", "sysctl -w net.ipv6.conf.all.forwarding=1, and see what turns it off (/etc/sysctl.d)")
			}
			return doctor.OK("on")
		}},
		{Name: "rp_filter", Run: func(context.Context) doctor.Finding {
			if _, err := net.InterfaceByName(Fabric); err != nil {
				return doctor.OK("set when the nodes are joined")
			}
			if own := read("ipv4/conf/" + Fabric + "/rp_filter"); own != "2" {
				return doctor.Problem(fmt.Sprintf("%s on %s: requests that come over another node are dropped", own, Fabric),
					"sysctl -w net.ipv4.conf."+Fabric+".rp_filter=2, and see what sets it (/etc/sysctl.d)")
			}
			return doctor.OK("loose on %s", Fabric)
		}},
		{Name: "other firewalls", Run: func(context.Context) doctor.Finding {
			problems := n.coexist.Check()
			if len(problems) > 0 {
				return doctor.Problem(problems[0], "let forwarded packets from and to "+Uplink+", "+Fabric+" and "+linkPrefix+"* pass")
			}
			return doctor.OK("none drops the cluster's forwarded packets")
		}},
		{Name: "network", Run: func(context.Context) doctor.Finding {
			if problems := n.Status().GetProblems(); len(problems) > 0 {
				return doctor.Problem(problems[0], "see swarmctl info for all of them, and swarmd's log")
			}
			return doctor.OK("as it should be")
		}},
	}
}
