package scheduler

import (
	"net/netip"
	"testing"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func TestConstraint_OnNode_Matches(t *testing.T) {
	node := &Node{
		ID: "n1", Hostname: "web-1", Role: swarmpb.NodeRole_NODE_ROLE_WORKER, Address: netip.MustParseAddr("10.1.2.3"),
		OS: "linux", Arch: "amd64", Labels: map[string]string{"zone": "Seoul-A", "in": "x", "cores": " 16", "a<b": "1"}, EngineLabels: map[string]string{"gpu": "yes"},
	}
	for text, want := range map[string]bool{
		"node.id==n1":                            true,
		"node.id != n1":                          false,
		"NODE.HOSTNAME == WEB-1":                 true,
		"node.hostname!=web-2":                   true,
		"node.role==worker":                      true,
		"node.role==manager":                     false,
		"node.ip==10.1.2.3":                      true,
		"node.ip==10.1.0.0/16":                   true,
		"node.ip!=10.1.0.0/16":                   false,
		"node.ip==10.2.0.0/16":                   false,
		"node.platform.os==Linux":                true,
		"node.platform.arch==x86_64":             true,
		"node.platform.arch!=aarch64":            true,
		"node.labels.zone==seoul-a":              true,
		"Node.Labels.zone==Seoul-A":              true,
		"node.labels.ZONE==seoul-a":              false, // a label's own name keeps its case
		"node.labels.missing!=x":                 true,
		"node.labels.missing==x":                 false,
		"engine.labels.gpu==yes":                 true,
		"engine.labels.gpu!=yes":                 false,
		"node.labels.zone==a!=b":                 false, // the first operator counts
		"node.labels.zone!=a==b":                 true,
		" node.labels.zone  ==  seoul-a":         true,
		"node.labels.zone in (b, seoul-a)":       true,
		"node.labels.zone IN (b,c)":              false,
		"node.labels.zone not in (b, c)":         true,
		"node.labels.zone not  in (seoul-a)":     false,
		"node.labels.missing in (x)":             false,
		"node.labels.missing not in (x)":         true,
		"node.labels.in==x":                      true,
		"node.labels.zone in (a==b, seoul-a)":    true,
		"node.ip in (10.2.0.0/16, 10.1.2.3)":     true,
		"node.ip not in (10.2.0.0/16, 10.1.2.3)": false,
		"node.role in (manager, worker)":         true,
		"node.labels.cores>8":                    true,
		"node.labels.cores > 16":                 false,
		"node.labels.cores>=16":                  true,
		"node.labels.cores<16.5":                 true,
		"node.labels.cores<=15":                  false,
		"node.labels.zone>1":                     false, // no number
		"node.labels.missing<1":                  false,
		"node.labels.zone=~^seoul-[ab]$":         true,
		"node.labels.zone=~busan":                false,
		"node.labels.zone!~busan":                true,
		"node.hostname=~^web-\\d+$":              true,
		"node.labels.missing!~.":                 true,
	} {
		c, err := constraint(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
		} else if got := c.Match(node); got != want {
			t.Errorf("%q: %t, want %t", text, got, want)
		}
	}
}

func TestConstraint_UnknownAddress_IsInNoNetwork(t *testing.T) {
	for text, want := range map[string]bool{"node.ip==0.0.0.0/0": false, "node.ip!=10.0.0.0/8": true} {
		c, err := constraint(text)
		if err != nil || c.Match(&Node{}) != want {
			t.Errorf("%q: want %t (%v)", text, want, err)
		}
	}
}

// Whatever the parser lets through can be matched: a task never waits for a constraint that nobody understands.
func FuzzConstraint_Parsed_CanBeMatched(f *testing.F) {
	for _, s := range []string{
		"node.id==a", "node.ip!=10.0.0.0/8", "node.ip==fe80::1%eth0", "node.ip!=::0000%00000000/00", "node.ip==::ffff:10.0.0.0/104", "node.labels.a.b==c",
		"node.role==MANAGER", "engine.labels.x!= y", "==", "!=",
		"node.labels.x in (a,b)", "node.id not in (", "node.labels.x=~(", "node.labels.x=~a{1000}{1000}", "node.labels.n<=1e400", "node.labels.n>NaN", "node.labels.n<0x1p3",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		parsed, err := swarmpb.ParseConstraint(s)
		if err != nil {
			return
		}
		c, err := NewConstraint(parsed)
		if err != nil {
			t.Errorf("%q: %v", s, err)
		}
		c.Match(&Node{})
	})
}

// constraint reads one as a template's is read.
func constraint(text string) (Constraint, error) {
	parsed, err := swarmpb.ParseConstraint(text)
	if err != nil {
		return Constraint{}, err
	}
	return NewConstraint(parsed)
}

func TestRequirements_Template_ReadsAllThatItAsks(t *testing.T) {
	q, err := NewRequirements(&swarmpb.Template{
		Spec: &swarmpb.TaskSpec{
			Resources: &swarmpb.ResourceRequirements{Reservations: &swarmpb.Resources{NanoCpus: 5, MemoryBytes: -7}},
			Placement: &swarmpb.Placement{
				Constraints:        []string{"node.role==worker"},
				Preferences:        []*swarmpb.PlacementPreference{{Spread: &swarmpb.SpreadOver{Descriptor_: "node.labels.zone"}}},
				MaxReplicasPerNode: 3,
			},
		},
		HostPorts: []*swarmpb.PortConfig{
			{PublishedPort: 80, Mode: swarmpb.PublishMode_PUBLISH_MODE_HOST},
			{PublishedPort: 0, Mode: swarmpb.PublishMode_PUBLISH_MODE_HOST},
			{PublishedPort: 53, Protocol: swarmpb.Protocol_PROTOCOL_UDP, Mode: swarmpb.PublishMode_PUBLISH_MODE_HOST},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if q.Reserve != (Resources{NanoCPUs: 5}) || q.MaxPerNode != 3 || len(q.Constraints) != 1 || len(q.Spread) != 1 {
		t.Errorf("requirements %+v", q)
	}
	tcp, udp := swarmpb.Protocol_PROTOCOL_TCP, swarmpb.Protocol_PROTOCOL_UDP
	if len(q.Ports) != 2 || q.Ports[0] != (Port{tcp, 80}) || q.Ports[1] != (Port{udp, 53}) {
		t.Errorf("ports %v", q.Ports)
	}
	if _, err := NewRequirements(nil); err != nil {
		t.Errorf("no template: %v", err)
	}
	for _, p := range []*swarmpb.Placement{
		{Constraints: []string{"x"}}, {Preferences: []*swarmpb.PlacementPreference{nil}},
	} {
		if _, err := NewRequirements(&swarmpb.Template{Spec: &swarmpb.TaskSpec{Placement: p}}); err == nil {
			t.Errorf("%v: no error", p)
		}
	}
}
