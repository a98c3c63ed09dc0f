package coexist

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
)

var links = []string{"u-*", "swarm-fab"}

// table is an iptables of the old kind, in memory: chain -> rules.
type table struct {
	policy map[string]string
	chains map[string][]string
}

func (x *table) run(program string, args ...string) (string, error) {
	if program != "iptables-legacy" {
		return "", nil
	}
	switch args[0] {
	case "-S":
		var out strings.Builder
		for _, name := range []string{"FORWARD", "DOCKER-USER"} {
			if len(args) > 1 && args[1] != name {
				continue
			}
			if p := x.policy[name]; p != "" {
				fmt.Fprintf(&out, "-P %s %s\n", name, p)
			}
			for _, r := range x.chains[name] {
				fmt.Fprintf(&out, "-A %s %s\n", name, r)
			}
		}
		return out.String(), nil
	case "-I":
		x.chains[args[1]] = slices.Insert(x.chains[args[1]], 0, strings.Join(args[2:], " "))
		return "", nil
	case "-D":
		i := slices.Index(x.chains[args[1]], strings.Join(args[2:], " "))
		if i < 0 {
			return "", errors.New("no such rule")
		}
		x.chains[args[1]] = slices.Delete(x.chains[args[1]], i, i+1)
		return "", nil
	}
	return "", fmt.Errorf("unknown %v", args)
}

func TestLegacy_DroppingForward_GetsAcceptsOnceAndLosesThem(t *testing.T) {
	for name, x := range map[string]*table{
		"FORWARD":     {policy: map[string]string{"FORWARD": "DROP"}, chains: map[string][]string{"FORWARD": {"-j ufw-before-forward"}}},
		"DOCKER-USER": {policy: map[string]string{"FORWARD": "DROP"}, chains: map[string][]string{"FORWARD": {"-j DOCKER-USER", "-j DOCKER"}, "DOCKER-USER": {"-j RETURN"}}},
	} {
		before := fmt.Sprint(x.chains)
		l := &legacy{links: links, run: x.run}
		for _, want := range []int{4, 0} {
			if added, problems, err := l.open(); added != want || len(problems) > 0 || err != nil {
				t.Errorf("%s: added %d (want %d), problems %q, %v", name, added, want, problems, err)
			}
		}
		if r := x.chains[name][0]; !strings.Contains(r, "-j ACCEPT") {
			t.Errorf("%s begins with %q", name, r)
		}
		if err := l.close(); err != nil || fmt.Sprint(x.chains) != before {
			t.Errorf("%s: after close %v, %v; want %s", name, x.chains, err, before)
		}
	}
}

func TestLegacy_AcceptingForwardOrNone_IsLeftAlone(t *testing.T) {
	x := &table{policy: map[string]string{"FORWARD": "ACCEPT"}, chains: map[string][]string{"FORWARD": {"-j DOCKER"}}}
	l := &legacy{links: links, run: x.run}
	if added, problems, err := l.open(); added != 0 || len(problems) > 0 || err != nil {
		t.Errorf("added %d, problems %q, %v", added, problems, err)
	}
}

func TestLegacy_NoProgram_SaysWhatToDo(t *testing.T) {
	l := &legacy{links: links, run: func(string, ...string) (string, error) { return "", errNoProgram }}
	_, problems, err := l.open()
	if err != nil || len(problems) != 2 || !strings.Contains(problems[0], "iptables-legacy") {
		t.Errorf("problems %q, %v", problems, err)
	}
	if err := l.close(); err != nil {
		t.Error(err)
	}
}

// bus is a firewalld in memory.
type bus struct {
	zones  map[string]string
	refuse error
}

func (b *bus) ZoneOf(_ context.Context, link string) (string, error) { return b.zones[link], nil }
func (b *bus) Move(_ context.Context, zone, link string) error {
	if b.refuse == nil {
		b.zones[link] = zone
	}
	return b.refuse
}
func (b *bus) Remove(_ context.Context, _, link string) error { delete(b.zones, link); return nil }
func (b *bus) Close()                                         {}

func TestFirewalld_LinksAreTrustedAndForgotten(t *testing.T) {
	b := &bus{zones: map[string]string{"eth0": "public", "u-+": "public"}}
	f := &firewalld{links: links, dial: func(context.Context) (zones, error) { return b, nil }}
	for _, want := range []int{2, 0} {
		if added, problems, err := f.open(); added != want || len(problems) > 0 || err != nil {
			t.Errorf("added %d (want %d), problems %q, %v", added, want, problems, err)
		}
	}
	if b.zones["u-+"] != trusted || b.zones["swarm-fab"] != trusted || b.zones["eth0"] != "public" {
		t.Errorf("zones are %v", b.zones)
	}
	if err := f.close(); err != nil || len(b.zones) != 1 {
		t.Errorf("zones are %v, %v", b.zones, err)
	}
	b.refuse = errors.New("not allowed")
	if _, problems, _ := f.open(); len(problems) != 2 || !strings.Contains(problems[0], "firewall-cmd") {
		t.Errorf("problems %q", problems)
	}
	f.dial = func(context.Context) (zones, error) { return nil, nil }
	if _, problems, err := f.open(); len(problems) > 0 || err != nil {
		t.Errorf("without firewalld: %q, %v", problems, err)
	}
}

func TestCheck_FirewallThatCannotBeAsked_IsAProblem(t *testing.T) {
	c := New(Config{Logger: slog.New(slog.DiscardHandler), Links: links})
	c.firewalls = []firewall{&firewalld{links: links, dial: func(context.Context) (zones, error) { return nil, errors.New("hangs") }}}
	if got := c.Check(); len(got) != 1 || !strings.Contains(got[0], "firewalld") {
		t.Errorf("problems %q", got)
	}
}
