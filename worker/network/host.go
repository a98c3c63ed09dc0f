package network

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/ingress"
)

const hostResolvConf = "/etc/resolv.conf"

// dnsPort is where resolvers listen.
const dnsPort = 53

// resolvers is what a host's resolv.conf says.
type resolvers struct {
	servers         []netip.Addr
	search, options []string
	rest            []string // other lines
}

// readResolvers reads a resolv.conf; one that is not there or cannot be read says nothing.
func readResolvers(path string) resolvers {
	data, err := os.ReadFile(path)
	if err != nil {
		return resolvers{}
	}
	var r resolvers
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0 || f[0][0] == '#' || f[0][0] == ';':
		case f[0] == "nameserver" && len(f) > 1:
			if a, err := netip.ParseAddr(f[1]); err == nil {
				r.servers = append(r.servers, a)
			}
		case f[0] == "search" || f[0] == "domain":
			r.search = f[1:]
		case f[0] == "options":
			r.options = append(r.options, f[1:]...)
		default:
			r.rest = append(r.rest, strings.Join(f, " "))
		}
	}
	return r
}

// reachable are the servers that a container can ask itself: those that are not on the host's own loopback.
func (r resolvers) reachable() []netip.Addr {
	return slices.DeleteFunc(slices.Clone(r.servers), netip.Addr.IsLoopback)
}

// answeredHere tells whether a task asks this node's resolver: it is in networks, or nobody else can be asked.
func (r resolvers) answeredHere(t *record) bool {
	if len(t.Networks) > 0 {
		return true
	}
	return len(t.DNS.GetNameservers()) == 0 && len(r.servers) > 0 && len(r.reachable()) == 0
}

// searchOf are the search domains of a task: the user's, else the host's. A single dot is none.
func (r resolvers) searchOf(wish *swarmpb.DNSConfig) []string {
	search := r.search
	if len(wish.GetSearch()) > 0 {
		search = wish.GetSearch()
	}
	if len(search) == 1 && search[0] == "." {
		return nil
	}
	return search
}

// confOf is the resolv.conf of a task.
func (r resolvers) confOf(t *record) string {
	var out strings.Builder
	servers, options := r.reachable(), r.options
	if wish := t.DNS.GetNameservers(); len(wish) > 0 {
		servers = nil
		for _, s := range serversOf(wish) {
			servers = append(servers, s.Addr())
		}
	}
	if r.answeredHere(t) {
		servers = []netip.Addr{ingress.ResolverAddress}
		if !slices.ContainsFunc(options, isNdots) {
			options = append(slices.Clone(options), "ndots:0") // names of services have no dot
		}
	}
	if wish := t.DNS.GetOptions(); len(wish) > 0 {
		options = wish
	}
	if search := r.searchOf(t.DNS); len(search) > 0 {
		fmt.Fprintf(&out, "search %s\n", strings.Join(search, " "))
	}
	for _, s := range servers {
		fmt.Fprintf(&out, "nameserver %s\n", s)
	}
	if len(options) > 0 {
		fmt.Fprintf(&out, "options %s\n", strings.Join(options, " "))
	}
	for _, line := range r.rest {
		fmt.Fprintln(&out, line)
	}
	return out.String()
}

func isNdots(option string) bool { return strings.HasPrefix(option, "ndots:") }

// serversOf parses addresses of resolvers; what is none is left out.
func serversOf(addresses []string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, s := range addresses {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, netip.AddrPortFrom(a, dnsPort))
		}
	}
	return out
}
