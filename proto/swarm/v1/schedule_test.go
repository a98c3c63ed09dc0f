package swarmpb

import (
	"strings"
	"testing"
	"time"
)

func TestTimetable_AroundDaylightSaving_EachTimeOnce(t *testing.T) {
	for name, c := range map[string]struct {
		cron, zone, after string
		want              []string
	}{
		"utc":                    {"*/20 * * * *", "", "2030-01-01T00:00:00Z", []string{"2030-01-01T00:20:00Z", "2030-01-01T00:40:00Z"}},
		"seoul":                  {"0 7 * * *", "Asia/Seoul", "2030-01-01T00:00:00Z", []string{"2030-01-01T22:00:00Z"}},
		"left out":               {"30 2 * * *", "America/New_York", "2030-03-09T12:00:00Z", []string{"2030-03-10T07:00:00Z", "2030-03-11T06:30:00Z"}},
		"several left out":       {"0,15,30 2 * * *", "America/New_York", "2030-03-09T12:00:00Z", []string{"2030-03-10T07:00:00Z", "2030-03-11T06:00:00Z"}},
		"twice":                  {"30 1 * * *", "America/New_York", "2030-11-02T12:00:00Z", []string{"2030-11-03T05:30:00Z", "2030-11-04T06:30:00Z"}},
		"between the two":        {"30 1 * * *", "America/New_York", "2030-11-03T05:45:00Z", []string{"2030-11-04T06:30:00Z"}},
		"each hour, also twice":  {"30 * * * *", "America/New_York", "2030-11-03T05:00:00Z", []string{"2030-11-03T05:30:00Z", "2030-11-03T06:30:00Z", "2030-11-03T07:30:00Z"}},
		"half an hour":           {"15 2 * * *", "Australia/Lord_Howe", "2030-10-05T00:00:00Z", []string{"2030-10-05T15:30:00Z", "2030-10-06T15:15:00Z"}},
		"a day that a zone left": {"0 12 * * *", "Pacific/Apia", "2011-12-29T23:00:00Z", []string{"2011-12-30T10:00:00Z", "2011-12-30T22:00:00Z"}},
		"every":                  {"@every 90s", "", "2030-01-01T00:00:00Z", []string{"2030-01-01T00:01:30Z", "2030-01-01T00:03:00Z"}},
		"february 29th":          {"0 0 29 2 *", "", "2030-01-01T00:00:00Z", []string{"2032-02-29T00:00:00Z"}},
	} {
		t.Run(name, func(t *testing.T) {
			times, err := (&Schedule{Cron: c.cron, Timezone: c.zone}).Timetable()
			if err != nil {
				t.Fatal(err)
			}
			at, err := time.Parse(time.RFC3339, c.after)
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range c.want {
				if at = times.Next(at); at.UTC().Format(time.RFC3339) != want {
					t.Fatalf("the next time is %s, want %s", at.UTC().Format(time.RFC3339), want)
				}
			}
		})
	}
}

func TestTimetable_Late_NewestAndHowMany(t *testing.T) {
	start := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		cron   string
		passed time.Duration
		newest time.Duration
		count  uint64
	}{
		"in time":        {"0 * * * *", time.Hour, time.Hour, 1},
		"three":          {"0 * * * *", 3*time.Hour + time.Minute, 3 * time.Hour, 3},
		"a year of days": {"0 0 * * *", 365 * 24 * time.Hour, 365 * 24 * time.Hour, 7},
		"seldom":         {"0 0 1 3 *", 90 * 24 * time.Hour, 59 * 24 * time.Hour, 1},
	} {
		t.Run(name, func(t *testing.T) {
			times, err := (&Schedule{Cron: c.cron}).Timetable()
			if err != nil {
				t.Fatal(err)
			}
			newest, count := times.Late(times.Next(start), start.Add(c.passed))
			if newest.Sub(start) != c.newest || count != c.count {
				t.Errorf("the newest of %d is %s after the start, want %s of %d", count, newest.Sub(start), c.newest, c.count)
			}
		})
	}
}

func TestServiceSpec_ModesValidated(t *testing.T) {
	job := func(change func(*ServiceSpec)) *ServiceSpec {
		spec := &ServiceSpec{Name: "j", Task: &TaskSpec{Container: &ContainerSpec{Image: "a:1"}},
			Mode: &ServiceMode{Mode: &ServiceMode_ReplicatedJob{ReplicatedJob: &ReplicatedJobMode{Total: 3}}}}
		change(spec)
		return spec
	}
	schedule := func(s *Schedule) func(*ServiceSpec) { return func(x *ServiceSpec) { x.Schedule = s } }
	for name, c := range map[string]struct {
		spec *ServiceSpec
		want string // empty: valid
	}{
		"job":              {job(func(*ServiceSpec) {}), ""},
		"no total":         {job(func(x *ServiceSpec) { x.Mode.GetReplicatedJob().Total = 0 }), "total"},
		"global":           {job(func(x *ServiceSpec) { x.Mode = &ServiceMode{Mode: &ServiceMode_Global{Global: &GlobalMode{}}} }), ""},
		"global job":       {job(func(x *ServiceSpec) { x.Mode = &ServiceMode{Mode: &ServiceMode_GlobalJob{GlobalJob: &GlobalJobMode{}}} }), ""},
		"job with rollout": {job(func(x *ServiceSpec) { x.Update = &UpdateConfig{} }), "a job has no rollout"},
		"job published": {job(func(x *ServiceSpec) {
			x.Endpoint = &EndpointSpec{Ports: []*PortConfig{{TargetPort: 80, PublishedPort: 8080}}}
		}), "publish 8080"},
		"global in sets": {job(func(x *ServiceSpec) {
			x.Mode = &ServiceMode{Mode: &ServiceMode_Global{Global: &GlobalMode{}}}
			x.Update = &UpdateConfig{Strategy: UpdateStrategy_UPDATE_STRATEGY_CANARY}
		}), "only a service of mode replicated"},
		"schedule": {job(schedule(&Schedule{Cron: "*/5 * * * *", Timezone: "Asia/Seoul"})), ""},
		"of a service": {job(func(x *ServiceSpec) {
			x.Mode, _ = ParseServiceMode("replicated")
			x.Schedule = &Schedule{Cron: "@daily"}
		}), "only a job"},
		"six fields":         {job(schedule(&Schedule{Cron: "0 */5 * * * *"})), "schedule"},
		"empty":              {job(schedule(&Schedule{})), "schedule"},
		"zone in the text":   {job(schedule(&Schedule{Cron: "TZ=UTC"})), "--timezone"},
		"unknown zone":       {job(schedule(&Schedule{Cron: "@daily", Timezone: "Mars/Olympus"})), `time zone "Mars/Olympus": it is not known; use an IANA name such as Asia/Seoul`},
		"the host's zone":    {job(schedule(&Schedule{Cron: "@daily", Timezone: "Local"})), "IANA"},
		"no number":          {job(schedule(&Schedule{Cron: "0 0 * * funday"})), `schedule "0 0 * * funday": "funday" is neither a number nor the name of a day or a month; use five fields`},
		"never":              {job(schedule(&Schedule{Cron: "0 0 30 2 *"})), "no time at all"},
		"too often":          {job(schedule(&Schedule{Cron: "@every 10ms"})), `schedule "@every 10ms": 10ms is not a time that @every takes; use 1s to 8784h0m0s`},
		"too seldom":         {job(schedule(&Schedule{Cron: "@every 2000000h"})), "use 1s to 8784h0m0s"},
		"too long":           {job(schedule(&Schedule{Cron: strings.Repeat("1,", 100) + "1 * * * *"})), "characters"},
		"too many runs kept": {job(schedule(&Schedule{Cron: "@daily", History: func() *uint32 { n := uint32(11); return &n }()})), "schedule history"},
		"policies not known": {job(schedule(&Schedule{Cron: "@daily", Overlap: 9})), "overlap"},
		"per node and global": {job(func(x *ServiceSpec) {
			x.Mode, _ = ParseServiceMode("global")
			x.Task.Placement = &Placement{MaxReplicasPerNode: 1}
		}), "max per node"},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.spec.Validate()
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("Validate says %v, want %q", err, c.want)
			}
		})
	}
}
