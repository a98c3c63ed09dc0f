package swarmpb

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	rolling   = UpdateStrategy_UPDATE_STRATEGY_ROLLING
	inPlace   = UpdateStrategy_UPDATE_STRATEGY_IN_PLACE
	recreate  = UpdateStrategy_UPDATE_STRATEGY_RECREATE
	blueGreen = UpdateStrategy_UPDATE_STRATEGY_BLUE_GREEN
	canary    = UpdateStrategy_UPDATE_STRATEGY_CANARY
)

func execProbe(words ...string) *Probe {
	return &Probe{Kind: &Probe_Exec{Exec: &ExecProbe{Command: words}}}
}

func httpProbe(x *HTTPProbe) *Probe { return &Probe{Kind: &Probe_Http{Http: x}} }

func canaryOf(steps ...*CanaryStep) *UpdateConfig {
	return &UpdateConfig{Strategy: canary, CanarySteps: steps}
}

func TestServiceSpecValidate_RolloutsAndHealth_AreTaken(t *testing.T) {
	one, half := 1.0, 0.5
	for name, change := range map[string]func(*ServiceSpec){
		"probes": func(s *ServiceSpec) {
			s.Task.Container.Health = execProbe("/bin/true", "")
			s.Task.Container.Health.Interval, s.Task.Container.Health.Timeout = durationpb.New(time.Millisecond), durationpb.New(24*time.Hour)
			s.Task.Container.Health.StartPeriod, s.Task.Container.Health.StartInterval = durationpb.New(0), durationpb.New(time.Millisecond)
			s.Task.Container.Ready = httpProbe(&HTTPProbe{Port: 8080, Path: "/healthz?full=1", Host: "www.example.org:81"})
		},
		"ready alone": func(s *ServiceSpec) { s.Task.Container.Ready = &Probe{Kind: &Probe_Tcp{Tcp: &TCPProbe{Port: 1}}} },
		"grpc": func(s *ServiceSpec) {
			s.Task.Container.Health = &Probe{Kind: &Probe_Grpc{Grpc: &GRPCProbe{Port: 65535, Service: "a.B"}}}
		},
		"shell": func(s *ServiceSpec) {
			s.Task.Container.Health = execProbe("a | b")
			s.Task.Container.Health.GetExec().Shell = true
		},
		"no healthcheck": func(s *ServiceSpec) { s.Task.Container.NoHealthcheck = true },
		"pre-stop": func(s *ServiceSpec) {
			s.Task.Container.PreStop, s.Task.Container.PreStopTimeout = []string{"/bin/sh", "-c", ""}, durationpb.New(time.Second)
		},
		"no drain": func(s *ServiceSpec) { s.Task.Container.DrainTimeout = durationpb.New(0) },
		"in-place": func(s *ServiceSpec) {
			s.Update = &UpdateConfig{Strategy: inPlace, Order: UpdateOrder_UPDATE_ORDER_STOP_FIRST}
		},
		"default canary": func(s *ServiceSpec) { s.Update = canaryOf() },
		"smallest canary": func(s *ServiceSpec) {
			s.Update = canaryOf(&CanaryStep{Share: 1}, &CanaryStep{Share: 9999, Manual: true})
		},
		"metric": func(s *ServiceSpec) {
			s.Update = canaryOf()
			s.Update.CanaryMetric = &CanaryMetric{Url: "https://p:9090/api/v1/query?query=up", Min: &half, Max: &one}
		},
		"blue-green": func(s *ServiceSpec) {
			s.Update = &UpdateConfig{Strategy: blueGreen, Order: UpdateOrder_UPDATE_ORDER_START_FIRST, PromoteGrace: durationpb.New(0),
				ProgressDeadline: durationpb.New(0), PreviewPorts: []*PortConfig{{TargetPort: 80}, {TargetPort: 80, PublishedPort: 8081}}}
			s.Rollback = &UpdateConfig{Strategy: recreate}
		},
	} {
		t.Run(name, func(t *testing.T) {
			spec := validSpec()
			change(spec)
			if err := spec.Validate(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestServiceSpecValidate_RolloutOrHealthWrong_NamesFieldAndWhatToDo(t *testing.T) {
	nan, high, low, host := math.NaN(), 2.0, 1.0, PublishMode_PUBLISH_MODE_HOST
	health := func(change func(*Probe)) func(*ServiceSpec) {
		return func(s *ServiceSpec) { s.Task.Container.Health = execProbe("true"); change(s.Task.Container.Health) }
	}
	http := func(x *HTTPProbe) func(*ServiceSpec) {
		return func(s *ServiceSpec) { s.Task.Container.Ready = httpProbe(x) }
	}
	update := func(c *UpdateConfig) func(*ServiceSpec) { return func(s *ServiceSpec) { s.Update = c } }
	metric := func(x *CanaryMetric) func(*ServiceSpec) {
		return update(&UpdateConfig{Strategy: canary, CanaryMetric: x})
	}
	preview := func(ports ...*PortConfig) func(*ServiceSpec) {
		return update(&UpdateConfig{Strategy: blueGreen, PreviewPorts: ports})
	}
	for name, test := range map[string]struct {
		change func(*ServiceSpec)
		want   string
	}{
		"no kind":       {func(s *ServiceSpec) { s.Task.Container.Health = &Probe{} }, "health: it asks nothing; give one of --health-cmd, --health-http, --health-tcp and --health-grpc"},
		"no kind ready": {func(s *ServiceSpec) { s.Task.Container.Ready = &Probe{} }, "ready: it asks nothing; give one of --ready-cmd"},
		"no command":    {func(s *ServiceSpec) { s.Task.Container.Health = execProbe() }, "health cmd: the command is empty; name a program"},
		"blank command": {func(s *ServiceSpec) { s.Task.Container.Health = execProbe(" ") }, "health cmd: the command is empty"},
		"NUL":           {func(s *ServiceSpec) { s.Task.Container.Health = execProbe("a", "\x00") }, "health cmd word 2: it holds a NUL byte"},
		"shell words":   {health(func(p *Probe) { p.GetExec().Command = []string{"a", "b"}; p.GetExec().Shell = true }), "health cmd: a shell takes one line, not 2 words"},
		"interval":      {health(func(p *Probe) { p.Interval = durationpb.New(0) }), "health interval: 0s is too short; use 1ms or more, or leave it out for 30s"},
		"timeout":       {health(func(p *Probe) { p.Timeout = durationpb.New(time.Microsecond) }), "health timeout: 1µs is too short"},
		"long timeout":  {health(func(p *Probe) { p.Timeout = durationpb.New(25 * time.Hour) }), "health timeout: 25h0m0s is too long; use at most 24h0m0s"},
		"start":         {health(func(p *Probe) { p.StartPeriod = durationpb.New(-1) }), "health start period: -1ns is negative"},
		"start every":   {health(func(p *Probe) { p.StartInterval = durationpb.New(1) }), "health start interval: 1ns is too short"},
		"retries":       {health(func(p *Probe) { p.Retries = 1001 }), "health retries: 1001 are too many; use at most 1000"},
		"http port":     {http(&HTTPProbe{}), "ready http: 0 is not a port; use the container's, 1 to 65535"},
		"http path":     {http(&HTTPProbe{Port: 1, Path: "healthz"}), `ready http path "healthz": it is not the path of a URL; use one such as /healthz`},
		"http lines":    {http(&HTTPProbe{Port: 1, Path: "/a\r\nHost: b"}), "it is not the path of a URL"},
		"http url":      {http(&HTTPProbe{Port: 1, Path: "http://x/"}), "it is not the path of a URL"},
		"http host":     {http(&HTTPProbe{Port: 1, Host: "a\r\nb"}), "it is not a host; use one such as"},
		"http host/":    {http(&HTTPProbe{Port: 1, Host: "a/b"}), "it is not a host"},
		"tcp port": {func(s *ServiceSpec) { s.Task.Container.Health = &Probe{Kind: &Probe_Tcp{Tcp: &TCPProbe{Port: 65536}}} },
			"health tcp: 65536 is not a port"},
		"nil tcp": {func(s *ServiceSpec) { s.Task.Container.Health = &Probe{Kind: &Probe_Tcp{}} }, "health tcp: 0 is not a port"},
		"grpc service": {func(s *ServiceSpec) {
			s.Task.Container.Health = &Probe{Kind: &Probe_Grpc{Grpc: &GRPCProbe{Port: 1, Service: "a\n"}}}
		},
			"it is not the name of a service"},
		"none and some": {func(s *ServiceSpec) { s.Task.Container.NoHealthcheck = true; s.Task.Container.Ready = execProbe("a") },
			"no healthcheck: the task has probes of its own; leave --no-healthcheck out"},
		"pre-stop empty":   {func(s *ServiceSpec) { s.Task.Container.PreStop = []string{""} }, "pre-stop: the command is empty"},
		"pre-stop NUL":     {func(s *ServiceSpec) { s.Task.Container.PreStop = []string{"\x00"} }, "pre-stop word 1: it holds a NUL byte"},
		"pre-stop timeout": {func(s *ServiceSpec) { s.Task.Container.PreStopTimeout = durationpb.New(1e9) }, "pre-stop timeout: there is no command before the stop; give --pre-stop as well"},
		"drain timeout":    {func(s *ServiceSpec) { s.Task.Container.DrainTimeout = durationpb.New(-1) }, "drain timeout: -1ns is negative"},
		"strategy":         {update(&UpdateConfig{Strategy: 9}), "update strategy: value 9 is not known to this version"},
		"in-place":         {update(&UpdateConfig{Strategy: inPlace, Order: 2}), "update order start-first: in-place needs the old task's node and volumes"},
		"recreate":         {update(&UpdateConfig{Strategy: recreate, Order: 2}), "update order start-first: recreate stops all old tasks"},
		"stop-first sets":  {update(&UpdateConfig{Strategy: canary, Order: 1}), "update order stop-first: canary starts the new tasks beside the old ones"},
		"rollback sets":    {func(s *ServiceSpec) { s.Rollback = &UpdateConfig{Strategy: blueGreen} }, "rollback strategy blue-green: a rollback has no set of its own; use rolling, in-place or recreate"},
		"steps of rolling": {update(&UpdateConfig{CanarySteps: []*CanaryStep{{Share: 1}}}), "update canary steps: strategy rolling has no steps"},
		"share 0":          {update(canaryOf(&CanaryStep{})), "update canary steps: step 1 (0%): it is not a part of the connections"},
		"share 100":        {update(canaryOf(&CanaryStep{Share: 500}, &CanaryStep{Share: 10000})), "step 2 (100%): it is not a part"},
		"nil step":         {update(canaryOf(nil)), "step 1 (0%)"},
		"descending":       {update(canaryOf(&CanaryStep{Share: 2500}, &CanaryStep{Share: 1250})), "step 2 (12.5%): it is not more than the 25% before it"},
		"same step":        {update(canaryOf(&CanaryStep{Share: 500}, &CanaryStep{Share: 500})), "step 2 (5%): it is not more than the 5% before it"},
		"watch":            {update(canaryOf(&CanaryStep{Share: 1, Watch: durationpb.New(-1)})), "step 1 (0.01%) watch: -1ns is negative"},
		"steps":            {update(canaryOf(make([]*CanaryStep, 21)...)), "update canary steps: 21 are too many; use at most 20"},
		"metric rolling":   {update(&UpdateConfig{CanaryMetric: &CanaryMetric{}}), "update canary metric: strategy rolling looks at no metric"},
		"metric url":       {metric(&CanaryMetric{Url: "file:///etc/passwd", Min: &low}), `update canary metric "file:///etc/passwd": it is not the address of a query`},
		"metric no url":    {metric(&CanaryMetric{Min: &low}), `update canary metric "": it is not the address`},
		"metric password":  {metric(&CanaryMetric{Url: "http://u:p@h/", Min: &low}), "its address holds a user or password"},
		"metric long":      {metric(&CanaryMetric{Url: "http://h/" + strings.Repeat("x", 5000), Min: &low}), "the address has 5009 bytes; use at most 4096"},
		"no bounds":        {metric(&CanaryMetric{Url: "http://h/"}), "it has no bounds, so that any value is good"},
		"NaN":              {metric(&CanaryMetric{Url: "http://h/", Max: &nan}), "a bound is not a number"},
		"bounds":           {metric(&CanaryMetric{Url: "http://h/", Min: &high, Max: &low}), "no value is at least 2 and at most 1; swap the bounds"},
		"metric interval":  {metric(&CanaryMetric{Url: "http://h/", Min: &low, Interval: durationpb.New(1)}), "canary metric interval: 1ns is too short; use 1s or more, or leave it out for 10s"},
		"preview rolling":  {update(&UpdateConfig{PreviewPorts: []*PortConfig{{TargetPort: 1}}}), "update preview publish: strategy rolling has no set to look at"},
		"preview canary":   {update(&UpdateConfig{Strategy: canary, PreviewPorts: []*PortConfig{{TargetPort: 1}}}), "update preview publish: strategy canary has no set"},
		"preview host":     {preview(&PortConfig{TargetPort: 1, PublishedPort: 8082, Mode: host}), "preview publish 8082: a port of mode host belongs to one task"},
		"preview target":   {preview(&PortConfig{PublishedPort: 8082}), "preview publish 8082: the target port 0 is not a port"},
		"preview own":      {preview(&PortConfig{TargetPort: 1, PublishedPort: 8080}), "preview publish 8080: the service publishes the port itself; choose another"},
		"preview twice":    {preview(&PortConfig{TargetPort: 1, PublishedPort: 8082}, &PortConfig{TargetPort: 2, PublishedPort: 8082}), "preview publish 8082: port 8082/tcp is published twice"},
		"grace of rolling": {update(&UpdateConfig{PromoteGrace: durationpb.New(1)}), "update promote grace: strategy rolling has no old set that could stay"},
		"grace":            {update(&UpdateConfig{Strategy: canary, PromoteGrace: durationpb.New(-1)}), "update promote grace: -1ns is negative"},
		"deadline":         {update(&UpdateConfig{ProgressDeadline: durationpb.New(-1)}), "update progress deadline: -1ns is negative"},
		"global sets": {func(s *ServiceSpec) {
			s.Mode.Mode = &ServiceMode_Global{}
			s.Update = &UpdateConfig{Strategy: blueGreen}
		},
			"update strategy blue-green: only a service of mode replicated can have two sets of tasks"},
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

func TestTemplateChanged_HowAServiceIsUpdated_ReplacesNoTask(t *testing.T) {
	before := validSpec()
	for name, change := range map[string]func(*ServiceSpec){
		"strategy": func(s *ServiceSpec) {
			s.Update = &UpdateConfig{Strategy: canary, CanarySteps: []*CanaryStep{{Share: 500}}}
		},
		"preview": func(s *ServiceSpec) {
			s.Update = &UpdateConfig{Strategy: blueGreen, PreviewPorts: []*PortConfig{{TargetPort: 80}}}
		},
		"rollback": func(s *ServiceSpec) { s.Rollback = &UpdateConfig{Strategy: recreate} },
	} {
		after := proto.CloneOf(before)
		change(after)
		if TemplateChanged(before, after) {
			t.Errorf("%s replaces tasks", name)
		}
	}
	for name, change := range map[string]func(*ContainerSpec){
		"health":   func(c *ContainerSpec) { c.Health = execProbe("true") },
		"ready":    func(c *ContainerSpec) { c.Ready = execProbe("true") },
		"pre-stop": func(c *ContainerSpec) { c.PreStop = []string{"true"} },
		"drain":    func(c *ContainerSpec) { c.DrainTimeout = durationpb.New(0) },
	} {
		after := proto.CloneOf(before)
		change(after.Task.Container)
		if !TemplateChanged(before, after) {
			t.Errorf("%s replaces no task, which keeps what it had", name)
		}
	}
}

func TestUpdateConfig_DropForeign_LeavesWhatTheStrategyTakes(t *testing.T) {
	all := func(strategy UpdateStrategy) *UpdateConfig {
		least := 1.0
		return &UpdateConfig{
			Strategy: strategy, Order: UpdateOrder_UPDATE_ORDER_START_FIRST, CanarySteps: []*CanaryStep{{Share: 500}},
			CanaryMetric: &CanaryMetric{Url: "http://h/", Min: &least}, PreviewPorts: []*PortConfig{{TargetPort: 80}}, PromoteGrace: durationpb.New(1),
		}
	}
	for number := range UpdateStrategy_name {
		spec := validSpec()
		spec.Update = all(UpdateStrategy(number))
		spec.Update.DropForeign()
		if err := spec.Validate(); err != nil {
			t.Errorf("%s: %v", UpdateStrategy(number).Name(), err)
		}
	}
	kept := all(canary)
	if kept.DropForeign(); kept.CanaryMetric == nil || len(kept.CanarySteps) != 1 || kept.PromoteGrace == nil || kept.PreviewPorts != nil {
		t.Errorf("a canary keeps %v", kept)
	}
	if kept = all(rolling); kept.GetOrder() != UpdateOrder_UPDATE_ORDER_START_FIRST {
		t.Error("rolling loses its order")
	}
	(*UpdateConfig)(nil).DropForeign()
}
