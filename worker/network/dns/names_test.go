package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"pgregory.net/rapid"
)

// TestApply_AnyChanges_TableIsTheModel compares what is answered after any updates with a model that is nothing but maps.
func TestApply_AnyChanges_TableIsTheModel(t *testing.T) {
	names := []string{"web", "tasks.web", "web.1.abc", "db", "alias"}
	networks := []string{"n1", "n2", "n3"}
	address := rapid.Custom(func(t *rapid.T) netip.Addr {
		n := rapid.IntRange(1, 6).Draw(t, "host")
		return netip.MustParseAddr(rapid.SampledFrom([]string{fmt.Sprintf("10.0.0.%d", n), fmt.Sprintf("fd00::%d", n)}).Draw(t, "address"))
	})
	rapid.Check(t, func(t *rapid.T) {
		r := New(Config{})
		model := map[string]map[string][]netip.Addr{}
		for range rapid.IntRange(1, 12).Draw(t, "updates") {
			u := Update{Networks: map[string]NetworkNames{}}
			for _, id := range rapid.SliceOfNDistinct(rapid.SampledFrom(networks), 0, 2, rapid.ID).Draw(t, "removed networks") {
				u.RemovedNetworks = append(u.RemovedNetworks, id)
				delete(model, id)
			}
			for _, id := range rapid.SliceOfNDistinct(rapid.SampledFrom(networks), 0, 3, rapid.ID).Draw(t, "networks") {
				change := NetworkNames{
					Full:    rapid.Bool().Draw(t, "full"),
					Set:     rapid.MapOfN(rapid.SampledFrom(names), rapid.SliceOfN(address, 0, 4), 0, 4).Draw(t, "set"),
					Removed: rapid.SliceOfN(rapid.SampledFrom(names), 0, 2).Draw(t, "removed"),
				}
				u.Networks[id] = change
				if model[id] == nil || change.Full {
					model[id] = map[string][]netip.Addr{}
				}
				for _, name := range change.Removed {
					delete(model[id], name)
				}
				for name, addrs := range change.Set {
					model[id][name] = addrs
				}
			}
			r.Apply(u)
			compare(t, r, model, networks, names)
		}
	})
}

func compare(t *rapid.T, r *Resolver, model map[string]map[string][]netip.Addr, networks, names []string) {
	ask := func(networks []string, name string, rrtype uint16) (*dns.Msg, bool) {
		packet, err := new(dns.Msg).SetQuestion(dns.Fqdn(name), rrtype).Pack()
		if err != nil {
			t.Fatal(err)
		}
		q, _ := parse(packet, true)
		var m dns.Msg
		done, err := r.answer(newSettings(Client{Networks: networks}), q, nil, m.Unpack)
		if err != nil {
			t.Fatal(err)
		}
		return &m, done
	}
	for _, id := range networks {
		for _, name := range names {
			want, known := model[id][name]
			var have []netip.Addr
			for _, rrtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
				m, done := ask([]string{id}, strings.ToUpper(name), rrtype)
				if done != known {
					t.Fatalf("%s in %s: known %v, want %v", name, id, done, known)
				}
				for _, text := range got(m) {
					have = append(have, netip.MustParseAddr(text))
				}
			}
			want = slices.SortedFunc(slices.Values(want), netip.Addr.Compare)
			if slices.SortFunc(have, netip.Addr.Compare); !slices.Equal(have, want) {
				t.Fatalf("%s in %s: %v, want %v", name, id, have, want)
			}
		}
		for n := 1; n <= 6; n++ {
			for _, text := range []string{fmt.Sprintf("10.0.0.%d", n), fmt.Sprintf("fd00::%d", n)} {
				reverse, err := dns.ReverseAddr(text)
				if err != nil {
					t.Fatal(err)
				}
				m, done := ask([]string{id}, reverse, dns.TypePTR)
				known := false
				for _, addrs := range model[id] {
					known = known || slices.Contains(addrs, netip.MustParseAddr(text))
				}
				if done != known {
					t.Fatalf("%s in %s: known %v, want %v", text, id, done, known)
				}
				if known && !slices.Contains(model[id][strings.TrimSuffix(got(m)[0], ".")], netip.MustParseAddr(text)) {
					t.Fatalf("%s in %s is called %s", text, id, got(m)[0])
				}
			}
		}
	}
	// Of several networks the first counts where the name has addresses, else it is known without any.
	for _, name := range names {
		m, done := ask(networks, name, dns.TypeA)
		known := slices.ContainsFunc(networks, func(id string) bool { _, ok := model[id][name]; return ok })
		i := slices.IndexFunc(networks, func(id string) bool { return len(model[id][name]) > 0 })
		if done != known {
			t.Fatalf("%s: known %v", name, done)
		}
		for _, text := range got(m) {
			if !slices.Contains(model[networks[i]][name], netip.MustParseAddr(text)) {
				t.Fatalf("%s: %s is not from %s", name, text, networks[i])
			}
		}
	}
}

// FuzzPackets gives everything that reads packets any bytes: nothing panics, and what is answered can be read and fits.
func FuzzPackets(f *testing.F) {
	r := New(Config{})
	r.Apply(back())
	query := new(dns.Msg).SetQuestion("web.", dns.TypeA)
	seeds := []*dns.Msg{query, new(dns.Msg).SetQuestion("3.1.0.10.in-addr.arpa.", dns.TypePTR), says("10.1.1.1", "10.1.1.2")(query, false), new(dns.Msg).SetQuestion("x.ip6.arpa.", dns.TypePTR)}
	edns := new(dns.Msg).SetQuestion("tasks.web.", dns.TypeANY)
	seeds = append(seeds, edns.SetEdns0(1232, true))
	for _, m := range seeds {
		packet, err := m.Pack()
		must(f, err)
		f.Add(packet, uint16(512))
	}
	asked, err := query.Pack()
	must(f, err)
	s := newSettings(Client{Networks: []string{"n1", "n2"}})
	f.Fuzz(func(t *testing.T, packet []byte, limit uint16) {
		for _, tcp := range []bool{false, true} {
			q, refusal := parse(packet, tcp)
			check := func(b []byte) error {
				if q != nil && len(b) > q.limit {
					t.Fatalf("%d bytes, limit %d", len(b), q.limit)
				}
				return new(dns.Msg).Unpack(b)
			}
			if q == nil {
				must(t, sendMessage(refusal, dns.MinMsgSize, nil, check))
				continue
			}
			if _, err := r.answer(s, q, nil, check); err != nil {
				t.Fatal(err)
			}
		}
		answers(asked, query.Question[0], packet)
		if out := fit(slices.Clone(packet), int(limit)); len(out) > int(limit) {
			t.Fatalf("%d bytes, limit %d", len(out), limit)
		}
	})
}
