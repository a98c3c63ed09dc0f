package swarmpb

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"
)

func validSpec() *ServiceSpec {
	return &ServiceSpec{
		Name: "web",
		Task: &TaskSpec{
			Container: &ContainerSpec{
				Image: "nginx:alpine", Env: []string{"A=1", "EMPTY="}, StopSignal: "SIGTERM", Hostname: "web", User: "1000:1000",
				Mounts: []*Mount{
					{Type: MountType_MOUNT_TYPE_BIND, Source: "/srv", Target: "/data", BindPropagation: "rslave"},
					{Type: MountType_MOUNT_TYPE_VOLUME, Source: "cache", Target: "/cache"},
					{Type: MountType_MOUNT_TYPE_TMPFS, Target: "/tmp", TmpfsSizeBytes: 1 << 20},
				},
				StopGracePeriod: durationpb.New(time.Second), CapDrop: []string{"ALL"}, CapAdd: []string{"cap_net_admin"},
			},
			StopAfterDisconnect: durationpb.New(30 * time.Second),
			Resources: &ResourceRequirements{
				Limits: &Resources{NanoCpus: 5e8, MemoryBytes: 1 << 28}, Reservations: &Resources{NanoCpus: 1e8, MemoryBytes: 1 << 26},
			},
			Restart:   &RestartPolicy{Condition: RestartCondition_RESTART_CONDITION_ON_FAILURE, Delay: durationpb.New(0)},
			Placement: &Placement{Constraints: []string{"node.role==worker", "Node.Labels.Zone != a"}},
		},
		Mode:           &ServiceMode{Mode: &ServiceMode_Replicated{Replicated: &ReplicatedMode{Replicas: 3}}},
		MaxUnavailable: &DisruptionBudget{Most: &DisruptionBudget_Percent{Percent: 100}}, NoRebalance: true,
		Endpoint: &EndpointSpec{Ports: []*PortConfig{{TargetPort: 80, PublishedPort: 8080, Mode: PublishMode_PUBLISH_MODE_HOST}}},
	}
}

func TestServiceSpecValidate_Valid_IsTaken(t *testing.T) {
	if err := validSpec().Validate(); err != nil {
		t.Fatal(err)
	}
}

func TestServiceSpecValidate_FieldsOfTheTask_AreAllowedWhereTheNodeExpandsThem(t *testing.T) {
	s := validSpec()
	s.Task.Container.Hostname = "{{.Service.Name}}-{{.Task.Slot}}"
	s.Task.Container.Mounts[1].Source = "data-{{.Task.Slot}}"
	if err := s.Validate(); err != nil {
		t.Error(err)
	}
	s.Task.Container.Hostname = "{{.Service.Name}}_{{.Task.Slot}}"
	if err := s.Validate(); err == nil || !strings.Contains(err.Error(), "it is not a host name") {
		t.Errorf("got %v", err)
	}
}

func TestServiceSpecValidate_OneThingWrong_NamesFieldAndWhatToDo(t *testing.T) {
	host := PublishMode_PUBLISH_MODE_HOST
	global := func(s *ServiceSpec) { s.Mode = &ServiceMode{Mode: &ServiceMode_Global{Global: &GlobalMode{}}} }
	for name, test := range map[string]struct {
		change func(*ServiceSpec)
		want   string
	}{
		"no name":        {func(s *ServiceSpec) { s.Name = "" }, "name: it is empty; give the service a name"},
		"bad name":       {func(s *ServiceSpec) { s.Name = "-web" }, `name "-web": it is not a valid service name; use letters`},
		"long name":      {func(s *ServiceSpec) { s.Name = strings.Repeat("a", 64) }, "it has 64 characters; use at most 63"},
		"no task":        {func(s *ServiceSpec) { s.Task = nil }, "image: it is not set; name the image"},
		"no image":       {func(s *ServiceSpec) { s.Task.Container.Image = "" }, "image: it is not set"},
		"bad image":      {func(s *ServiceSpec) { s.Task.Container.Image = "Nginx:a b" }, `image "Nginx:a b": it is not an image reference`},
		"bad digest":     {func(s *ServiceSpec) { s.Task.Container.ImageDigest = "sha256:1" }, "it is not a digest"},
		"no mode":        {func(s *ServiceSpec) { s.Mode = nil }, "mode: it is not set"},
		"replicas -1":    {func(s *ServiceSpec) { s.Mode.GetReplicated().Replicas = math.MaxUint64 }, "replicas: 18446744073709551615 are too many"},
		"host affinity":  {func(s *ServiceSpec) { s.Endpoint.Ports[0].Affinity = 2 }, "publish 8080: source and affinity are the ingress mesh's"},
		"cluster's port": {func(s *ServiceSpec) { s.Endpoint.Ports[0].PublishedPort = 2377 }, "publish 2377: the port is that of the cluster's own calls; choose another port"},
		"ports": {func(s *ServiceSpec) {
			for i := range uint32(MaxPorts) {
				s.Endpoint.Ports = append(s.Endpoint.Ports, &PortConfig{TargetPort: 1, PublishedPort: 20000 + i})
			}
		}, "publish: 1001 ports are too many"},
		"endpoint mode":  {func(s *ServiceSpec) { s.Endpoint.Mode = 9 }, "endpoint mode: value 9 is not known to this version"},
		"network twice":  {func(s *ServiceSpec) { s.Task.Networks = []*NetworkAttachment{{Network: "a"}, {Network: "a"}} }, `network "a": it is named twice`},
		"network":        {func(s *ServiceSpec) { s.Task.Networks = []*NetworkAttachment{nil} }, "network: it has no name"},
		"networks":       {func(s *ServiceSpec) { s.Task.Networks = make([]*NetworkAttachment, 33) }, "network: 33 are too many; use at most 32"},
		"alias":          {func(s *ServiceSpec) { s.Task.Networks = []*NetworkAttachment{{Network: "a", Aliases: []string{"a b"}}} }, `network "a" alias "a b": it is not a host name`},
		"dns":            {func(s *ServiceSpec) { s.Task.Container.Dns = &DNSConfig{Nameservers: []string{"dns"}} }, `dns "dns": it is not an IP address`},
		"dns search":     {func(s *ServiceSpec) { s.Task.Container.Dns = &DNSConfig{Search: []string{"a b"}} }, `dns search "a b": it is not a domain`},
		"dns option":     {func(s *ServiceSpec) { s.Task.Container.Dns = &DNSConfig{Options: []string{"a b"}} }, `dns option "a b": it is not one word`},
		"host":           {func(s *ServiceSpec) { s.Task.Container.Hosts = []string{"db 1.2.3.4"} }, `host "db 1.2.3.4": it is not an address and names; use HOST:IP`},
		"target port":    {func(s *ServiceSpec) { s.Endpoint.Ports[0].TargetPort = 0 }, "publish 8080: the target port 0 is not a port; use 1 to 65535"},
		"published port": {func(s *ServiceSpec) { s.Endpoint.Ports[0].PublishedPort = 70000 }, "publish 70000: it is not a port"},
		"port twice": {func(s *ServiceSpec) {
			s.Endpoint.Ports = append(s.Endpoint.Ports, &PortConfig{TargetPort: 81, PublishedPort: 8080, Mode: host, Protocol: Protocol_PROTOCOL_TCP})
		}, "publish 8080: port 8080/tcp is published twice"},
		"nil port":         {func(s *ServiceSpec) { s.Endpoint.Ports = []*PortConfig{nil} }, "publish #1 (target 0)"},
		"env":              {func(s *ServiceSpec) { s.Task.Container.Env = []string{"=x"} }, `env "=x": it is not NAME=VALUE`},
		"label":            {func(s *ServiceSpec) { s.Task.Container.Labels = map[string]string{"com.docker.swarm.task": "x"} }, `container label "com.docker.swarm.task": the key is the system's own`},
		"service label":    {func(s *ServiceSpec) { s.Labels = map[string]string{"containerd.io/x": ""} }, `label "containerd.io/x": the key is the system's own`},
		"relative target":  {func(s *ServiceSpec) { s.Task.Container.Mounts[0].Target = "data" }, "mount data: the target is not absolute"},
		"root target":      {func(s *ServiceSpec) { s.Task.Container.Mounts[0].Target = "/x/.." }, "the root cannot be mounted over"},
		"target twice":     {func(s *ServiceSpec) { s.Task.Container.Mounts[0].Target = "/cache/" }, "mount /cache: another mount has the same target"},
		"relative source":  {func(s *ServiceSpec) { s.Task.Container.Mounts[0].Source = "srv" }, `mount /data: the source "srv" is not absolute`},
		"tmpfs source":     {func(s *ServiceSpec) { s.Task.Container.Mounts[2].Source = "/x" }, "mount /tmp: a tmpfs has no source"},
		"mount type":       {func(s *ServiceSpec) { s.Task.Container.Mounts[2].Type = 9 }, "mount /tmp: its type is not known; use type=bind"},
		"nil mount":        {func(s *ServiceSpec) { s.Task.Container.Mounts[0] = nil }, "mount #1: it has no target"},
		"foreign options":  {func(s *ServiceSpec) { s.Task.Container.Mounts[1].TmpfsMode = 0o700 }, "mount /cache: it has options of a tmpfs"},
		"signal":           {func(s *ServiceSpec) { s.Task.Container.StopSignal = "SIGNOPE" }, `stop signal "SIGNOPE": there is no such signal`},
		"grace":            {func(s *ServiceSpec) { s.Task.Container.StopGracePeriod = durationpb.New(-time.Second) }, "stop grace period: -1s is negative; use 0s or more"},
		"no disconnect":    {func(s *ServiceSpec) { s.Task.StopAfterDisconnect = durationpb.New(0) }, "stop after disconnect: 0s is too short; use 1s or more"},
		"long disconnect":  {func(s *ServiceSpec) { s.Task.StopAfterDisconnect = durationpb.New(25 * time.Hour) }, "stop after disconnect: 25h0m0s is too long; use at most 24h0m0s"},
		"neg disconnect":   {func(s *ServiceSpec) { s.Task.StopAfterDisconnect = durationpb.New(-1) }, "stop after disconnect: -1ns is negative"},
		"no duration":      {func(s *ServiceSpec) { s.Task.Restart.Window = &durationpb.Duration{Nanos: -1, Seconds: 1} }, "restart window: not a duration"},
		"capability":       {func(s *ServiceSpec) { s.Task.Container.CapAdd = []string{"FLY"} }, `cap-add "FLY": there is no such capability`},
		"little cpu":       {func(s *ServiceSpec) { s.Task.Resources.Reservations.NanoCpus = 1 }, "reserve cpu: 0.000000001 is too little; use 0.001 or more"},
		"little memory":    {func(s *ServiceSpec) { s.Task.Resources.Limits.MemoryBytes = 1 << 20 }, "limit memory: 1048576 bytes is too little; use 4 MiB or more"},
		"reserve > limit":  {func(s *ServiceSpec) { s.Task.Resources.Reservations.NanoCpus = 2e9 }, "reserve cpu: 2 is more than the limit of 0.5"},
		"constraint":       {func(s *ServiceSpec) { s.Task.Placement.Constraints = []string{"node.rule==worker"} }, `constraint "node.rule==worker": the key "node.rule" is not known; use node.id`},
		"priority":         {func(s *ServiceSpec) { s.Priority = MaxPriority + 1 }, `priority: 1000001 is out of range; use -1000000 to 1000000`},
		"priority too low": {func(s *ServiceSpec) { s.Priority = -MaxPriority - 1 }, `priority: -1000001 is out of range; use -1000000 to 1000000`},
		"budget":           {func(s *ServiceSpec) { s.MaxUnavailable = &DisruptionBudget{} }, "max unavailable: it says neither how many nor which share; give a number of tasks, such as 1, or a share, such as 25%"},
		"budget 0":         {func(s *ServiceSpec) { s.MaxUnavailable = &DisruptionBudget{Most: &DisruptionBudget_Count{}} }, "max unavailable: with 0 a drain would never end; give at least 1"},
		"budget 0%":        {func(s *ServiceSpec) { s.MaxUnavailable = &DisruptionBudget{Most: &DisruptionBudget_Percent{}} }, "max unavailable: 0% is not from 1% to 100%"},
		"budget 101%": {func(s *ServiceSpec) {
			s.MaxUnavailable = &DisruptionBudget{Most: &DisruptionBudget_Percent{Percent: 101}}
		}, "max unavailable: 101% is not from 1% to 100%"},
		"budget of global": {func(s *ServiceSpec) {
			global(s)
			s.MaxUnavailable = &DisruptionBudget{Most: &DisruptionBudget_Count{Count: 1}}
		}, "max unavailable: only replicated services have a budget, this one is global; leave it out"},
		"global rebalance": {func(s *ServiceSpec) { global(s); s.NoRebalance = true }, "no rebalance: only tasks of replicated services are moved for balance, this one is global; leave it out"},
		"constraint value": {func(s *ServiceSpec) { s.Task.Placement.Constraints = []string{"node.ip==here"} }, "neither an address nor a network"},
		"preference":       {func(s *ServiceSpec) { s.Task.Placement.Preferences = []*PlacementPreference{{}} }, "it cannot be spread over"},
		"ratio":            {func(s *ServiceSpec) { s.Update = &UpdateConfig{MaxFailureRatio: math.NaN()} }, "update max failure ratio: NaN is not a share; use 0 to 1"},
		"rollback":         {func(s *ServiceSpec) { s.Rollback = &UpdateConfig{FailureAction: 3} }, "a rollback cannot be rolled back"},
		"unknown order":    {func(s *ServiceSpec) { s.Update = &UpdateConfig{Order: 9} }, "update order: value 9 is not known to this version"},
		"size":             {func(s *ServiceSpec) { s.Task.Container.Args = []string{strings.Repeat("x", MaxSpecBytes)} }, "at most 262144 are taken"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := validSpec()
			test.change(spec)
			err := spec.Validate()
			var field *FieldError
			if !errors.As(err, &field) || field.Field == "" || field.Fix == "" || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error is %v, want a FieldError with %q", err, test.want)
			}
		})
	}
}

func TestServiceSpecValidate_AnyBytes_IsDeterministicAndNeverPanics(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		data, err := proto.Marshal(validSpec())
		if err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(0, 10).Draw(t, "flips") {
			data[rapid.IntRange(0, len(data)-1).Draw(t, "at")] = rapid.Byte().Draw(t, "byte")
		}
		spec := new(ServiceSpec)
		if proto.Unmarshal(data, spec) != nil {
			return
		}
		a, b := spec.Validate(), spec.Validate()
		if (a == nil) != (b == nil) || a != nil && a.Error() != b.Error() {
			t.Fatalf("errors differ: %v, %v", a, b)
		}
	})
}

func TestClusterSpecValidate_BadPoolOrExpiry_SaysSo(t *testing.T) {
	for _, test := range []struct {
		spec *ClusterSpec
		want string
	}{
		{&ClusterSpec{}, ""},
		{nil, ""},
		{&ClusterSpec{FabricPool: "100.64.0.0/10", FabricBlockLength: 24, NodeCertExpiry: durationpb.New(time.Hour)}, ""},
		{&ClusterSpec{FabricPool: "here"}, `fabric pool "here": it is not an IPv4 network`},
		{&ClusterSpec{FabricPool: "100.64.1.0/10"}, "use 100.64.0.0/10"},
		{&ClusterSpec{FabricPool: "127.0.0.0/8"}, "containers cannot have such addresses"},
		{&ClusterSpec{FabricPool: "100.64.0.0/24", FabricBlockLength: 24}, "must be smaller than the pool"},
		{&ClusterSpec{NodeCertExpiry: durationpb.New(time.Minute)}, "node certificate expiry: 1m0s is too short; use 1h0m0s or more"},
		{&ClusterSpec{TaskHistoryLimit: proto.Uint32(MaxTaskHistory)}, ""},
		{&ClusterSpec{TaskHistoryLimit: proto.Uint32(MaxTaskHistory + 1)}, "task history limit: 1001 ended tasks a replica are too many; use at most 1000"},
		{&ClusterSpec{GossipKeyRotation: durationpb.New(time.Hour)}, ""},
		{&ClusterSpec{GossipKeyRotation: durationpb.New(59 * time.Minute)}, "gossip key rotation: 59m0s is too short; use 1h0m0s or more"},
		{&ClusterSpec{GossipKeyRotation: durationpb.New(-time.Hour)}, "gossip key rotation: -1h0m0s is negative; use 0s or more"},
		{&ClusterSpec{GossipKeyRotation: &durationpb.Duration{Nanos: -1, Seconds: 1}}, "gossip key rotation: not a duration"},
		{&ClusterSpec{GossipKeyRotation: durationpb.New(2 * 365 * 24 * time.Hour)}, "gossip key rotation: 17520h0m0s is too long"},
	} {
		err := test.spec.Validate()
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v: error is %v, want %q", test.spec, err, test.want)
		}
	}
}

func TestClusterSpecSetDefaults_Empty_IsValidAndComplete(t *testing.T) {
	var spec ClusterSpec
	spec.SetDefaults()
	if err := spec.Validate(); err != nil {
		t.Errorf("the defaults are not valid: %v", err)
	}
	if d := spec.GetGossipKeyRotation().AsDuration(); d != 24*time.Hour {
		t.Errorf("gossip keys rotate every %v", d)
	}
}

func TestTemplateChanged_OnlyWhatTasksAreMadeOf_Counts(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*ServiceSpec)
		want   bool
	}{
		"nothing":   {func(*ServiceSpec) {}, false},
		"replicas":  {func(s *ServiceSpec) { s.Mode.GetReplicated().Replicas = 9 }, false},
		"labels":    {func(s *ServiceSpec) { s.Labels = map[string]string{"a": "b"} }, false},
		"update":    {func(s *ServiceSpec) { s.Update = &UpdateConfig{Order: 2} }, false},
		"ingress":   {func(s *ServiceSpec) { s.Endpoint.Ports = append(s.Endpoint.Ports, &PortConfig{TargetPort: 1}) }, false},
		"image":     {func(s *ServiceSpec) { s.Task.Container.Image = "other" }, true},
		"force":     {func(s *ServiceSpec) { s.Task.ForceUpdate++ }, true},
		"host port": {func(s *ServiceSpec) { s.Endpoint.Ports[0].PublishedPort++ }, true},
		"no ports":  {func(s *ServiceSpec) { s.Endpoint = nil }, true},
	} {
		next := validSpec()
		test.change(next)
		if got := TemplateChanged(validSpec(), next); got != test.want {
			t.Errorf("%s: changed is %v, want %v", name, got, test.want)
		}
	}
}

func TestIDs_SameParts_SameID(t *testing.T) {
	if a, b := TaskID("s", 1, "", 2), TaskID("s", 1, "", 2); a != b || !ValidID(a) {
		t.Fatalf("IDs are %q and %q", a, b)
	}
	seen := map[string]bool{NewID(): true, NewID(): true, DerivedID("ab", "c"): true, DerivedID("a", "bc"): true, TaskID("s", 1, "", 3): true}
	if len(seen) != 5 {
		t.Fatalf("IDs meet: %v", seen)
	}
	if TaskName("web", 3, "") != "web.3" || TaskName("web", 7, "n") != "web.n" {
		t.Fatal("task names are wrong")
	}
}

func TestNames_EveryWord_ReadsBack(t *testing.T) {
	for _, mode := range []PublishMode{PublishMode_PUBLISH_MODE_HOST, PublishMode_PUBLISH_MODE_INGRESS} {
		if got, err := ParsePublishMode(mode.Name()); err != nil || got != mode {
			t.Errorf("%s reads back as %v, %v", mode.Name(), got, err)
		}
	}
	for _, policy := range []PullPolicy{PullPolicy_PULL_POLICY_ALWAYS, PullPolicy_PULL_POLICY_MISSING, PullPolicy_PULL_POLICY_NEVER} {
		if got, err := ParsePullPolicy(policy.Name()); err != nil || got != policy {
			t.Errorf("%s reads back as %v, %v", policy.Name(), got, err)
		}
	}
	if got, err := ParseRestartCondition("on-failure"); err != nil || got.Name() != "on-failure" {
		t.Errorf("on-failure reads back as %v, %v", got, err)
	}
	_, err := ParseNodeAvailability("gone")
	if err == nil || err.Error() != `availability "gone": not known; use active, pause, drain` {
		t.Errorf("error is %v", err)
	}
	if TaskState_TASK_STATE_RUNNING.Name() != "running" || TaskState(85).Name() != "unknown(85)" ||
		UpdateState_UPDATE_STATE_ROLLBACK_STARTED.Name() != "rollback_started" || Table_TABLE_TASK_STATUS.Name() != "task status" {
		t.Error("names are wrong")
	}
}

func TestRowKeyID_DifferentKeys_Differ(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func() *RowKey {
			word := rapid.StringMatching(`[a/1]{0,3}`)
			return &RowKey{Table: Table(rapid.Int32Range(0, 3).Draw(t, "table")), Number: rapid.Uint64Range(0, 2).Draw(t, "number"),
				Id: word.Draw(t, "id"), Name: word.Draw(t, "name")}
		}
		a, b := draw(), draw()
		if (a.ID() == b.ID()) != proto.Equal(a, b) {
			t.Fatalf("%v and %v have IDs %q and %q", a, b, a.ID(), b.ID())
		}
	})
}
