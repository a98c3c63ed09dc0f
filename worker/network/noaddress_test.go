package network

import (
	"net/netip"
	"slices"
	"testing"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/network/dns"
)

func TestNames_ServiceWithoutTasks_IsKnownWithoutAddresses(t *testing.T) {
	v := view{told: &told{services: map[string]*swarmpb.AssignedService{"s": {
		Id: "s", Name: "Web", Mode: swarmpb.EndpointMode_ENDPOINT_MODE_DNSRR, Networks: []*swarmpb.NetworkAttachment{{Network: "n", Aliases: []string{"www"}}},
	}}}}
	d := directory{}
	d.set("n", "s", v.names("n", "s"))
	answer := func(name string) ([]netip.Addr, bool) {
		u := dns.NetworkNames{Set: map[string][]netip.Addr{}}
		d["n"].say(name, &u)
		got, known := u.Set[name]
		if known == slices.Contains(u.Removed, name) || len(u.Absent)+len(u.Divided) > 0 {
			t.Errorf("of %s the resolver is told %v", name, u)
		}
		return got, known
	}
	for _, name := range []string{"web", "www", "tasks.web"} {
		if got, known := answer(name); !known || len(got) > 0 || !d["n"].unsaid[name] {
			t.Errorf("%s is %v, known %t, to be said %t; want it known, without addresses", name, got, known, d["n"].unsaid[name])
		}
	}
	some := []netip.Addr{netip.MustParseAddr("10.0.0.2")}
	d.set("n", "other", map[string]given{"web": {addrs: some}})
	if got, _ := answer("web"); !slices.Equal(got, some) {
		t.Errorf("web is %v, want what another service gives", got)
	}
	d.set("n", "s", nil)
	if _, known := answer("www"); known {
		t.Error("a name is known that nobody gives any more")
	}
}
