package health

import (
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/durationpb"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime"
)

const (
	starting  = swarmpb.HealthState_HEALTH_STATE_STARTING
	healthy   = swarmpb.HealthState_HEALTH_STATE_HEALTHY
	unhealthy = swarmpb.HealthState_HEALTH_STATE_UNHEALTHY
)

func tcp(port uint32, interval, startPeriod time.Duration) *swarmpb.Probe {
	return &swarmpb.Probe{
		Kind: &swarmpb.Probe_Tcp{Tcp: &swarmpb.TCPProbe{Port: port}}, Interval: durationpb.New(interval), StartPeriod: durationpb.New(startPeriod),
	}
}

var began = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// feed gives a machine one answer a second from the start on, and returns the seconds at which something changed, and what.
func feed(m *Machine, check *Check, answers string) (changes []string, last State) {
	for i, a := range answers {
		s, changed := m.Take(check, Answer{OK: a == '+', Text: "said " + string(a)}, began.Add(time.Duration(i)*time.Second))
		if changed {
			ready := "not ready"
			if s.Ready {
				ready = "ready"
			}
			changes = append(changes, string(rune('0'+i%10))+" "+s.Live.Name()+" "+ready)
		}
		last = s
	}
	return changes, last
}

func TestMachine_Answers_ChangeTheStateAsTheyCount(t *testing.T) {
	for _, c := range []struct {
		name    string
		period  time.Duration
		answers string
		want    []string
	}{
		{"ready at once", 0, "+++", []string{"0 healthy ready"}},
		{"fails from the first", 0, "----", []string{"1 starting not ready", "2 starting not ready", "3 unhealthy not ready"}}, // at 1, 2 and 3 s: the look at once does not count
		{"in its start period", 5 * time.Second, "-------+", []string{"6 starting not ready", "7 healthy ready"}},
		{"fails after its start period", 5 * time.Second, "---------", []string{"6 starting not ready", "7 starting not ready", "8 unhealthy not ready"}},
		{"a success ends the start period", 9 * time.Second, "+---", []string{"0 healthy ready", "3 unhealthy not ready"}},
		{"a success between failures", 0, "+--+--+", []string{"0 healthy ready"}},
		{"unhealthy is for good", 0, "+---+++", []string{"0 healthy ready", "3 unhealthy not ready"}},
	} {
		checks := Of(&swarmpb.ContainerSpec{Health: tcp(80, time.Second, c.period)}, nil)
		if checks.Live != checks.Ready {
			t.Fatal("one probe for both is two")
		}
		got, last := feed(NewMachine(checks, began, State{}), checks.Live, c.answers)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		if last.Live == unhealthy && (last.Reason != "unhealthy: tcp :80: said -" || last.Failing != 3) {
			t.Errorf("%s: reason %q after %d failures", c.name, last.Reason, last.Failing)
		}
	}
}

func TestMachine_ReadinessOfItsOwn_ComesAndGoesWithoutHarm(t *testing.T) {
	checks := Of(&swarmpb.ContainerSpec{Health: tcp(80, time.Second, 0), Ready: tcp(81, time.Second, 0)}, nil)
	m := NewMachine(checks, began, State{})
	if s, changed := m.Take(checks.Live, Answer{OK: true}, began); !changed || s.Live != healthy || s.Ready {
		t.Errorf("alive alone: %+v", s)
	}
	got, last := feed(m, checks.Ready, "+---++")
	if want := []string{"0 healthy ready", "3 healthy not ready", "4 healthy ready"}; !slices.Equal(got, want) || last.Reason != "" {
		t.Errorf("%q, %+v, want %q", got, last, want)
	}
}

func TestMachine_ReadinessAlone_NeverUnhealthy(t *testing.T) {
	checks := Of(&swarmpb.ContainerSpec{Ready: tcp(81, time.Second, 0)}, nil)
	got, _ := feed(NewMachine(checks, began, State{}), checks.Ready, "-----+----+")
	if want := []string{"1 starting not ready", "2 starting not ready", "3 starting not ready", "5 healthy ready", "8 healthy not ready", "0 healthy ready"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestMachine_GoesOnFromAStatus_NothingChangesByItself(t *testing.T) {
	checks := Of(&swarmpb.ContainerSpec{Health: tcp(80, time.Second, time.Hour)}, nil)
	m := NewMachine(checks, began, State{})
	_, was := feed(m, checks.Live, "+")
	again := NewMachine(checks, began.Add(time.Second), StateOf(was.Status(), true))
	got, _ := feed(again, checks.Live, "+--")
	if len(got) > 0 || !again.State().Ready || again.Pause(checks.Live) != time.Second {
		t.Errorf("changes %q, ready %t, pause %s", got, again.State().Ready, again.Pause(checks.Live))
	}
	if got, last := feed(again, checks.Live, "-"); len(got) != 1 || last.Live != unhealthy {
		t.Errorf("a third failure, with an hour's start period once over: %q, %+v", got, last)
	}
}

func TestMachine_BeforeTheFirstSuccess_AskedSoonAndCountedLate(t *testing.T) {
	checks := Of(&swarmpb.ContainerSpec{}, &runtime.Healthcheck{Test: []string{"CMD-SHELL", "true"}})
	m := NewMachine(checks, began, State{})
	var pauses []time.Duration
	at := began
	var s State
	for s.Live != unhealthy {
		s, _ = m.Take(checks.Live, Answer{}, at)
		pauses = append(pauses, m.Pause(checks.Live))
		at = at.Add(m.Pause(checks.Live))
	}
	if first := pauses[:6]; !slices.Equal(first, []time.Duration{100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond, 1600 * time.Millisecond, 3200 * time.Millisecond}) {
		t.Errorf("pauses %v", first)
	}
	// Docker's defaults: three failures 30 s apart, from the start on.
	if after := at.Sub(began); after < 90*time.Second || after > 110*time.Second {
		t.Errorf("unhealthy after %s, want 90 s and what the looks are apart", after)
	}
	set := Of(&swarmpb.ContainerSpec{Health: &swarmpb.Probe{Kind: tcp(1, 0, 0).Kind, StartInterval: durationpb.New(2 * time.Second)}}, nil)
	if p := NewMachine(set, began, State{}).Pause(set.Live); p != 2*time.Second {
		t.Errorf("with a start interval of 2 s the pause is %s", p)
	}
}

func TestOf_SpecAndImage_DecideWhatIsAsked(t *testing.T) {
	image := &runtime.Healthcheck{Test: []string{"CMD", "check", "me"}, Interval: 7 * time.Second, Retries: 5}
	for _, c := range []struct {
		name        string
		spec        *swarmpb.ContainerSpec
		image       *runtime.Healthcheck
		live, ready string
	}{
		{"nothing", &swarmpb.ContainerSpec{}, nil, "", ""},
		{"image's", &swarmpb.ContainerSpec{}, image, "cmd check me", "cmd check me"},
		{"image's is NONE", &swarmpb.ContainerSpec{}, &runtime.Healthcheck{Test: []string{"NONE"}}, "", ""},
		{"image's is switched off", &swarmpb.ContainerSpec{NoHealthcheck: true, Ready: tcp(1, 0, 0)}, image, "", ""},
		{"spec's wins", &swarmpb.ContainerSpec{Health: tcp(8080, 0, 0)}, image, "tcp :8080", "tcp :8080"},
		{"ready beside the image's", &swarmpb.ContainerSpec{Ready: tcp(8080, 0, 0)}, image, "cmd check me", "tcp :8080"},
		{"shell", &swarmpb.ContainerSpec{}, &runtime.Healthcheck{Test: []string{"CMD-SHELL", "a | b"}}, "cmd a | b", "cmd a | b"},
	} {
		name := func(c *Check) string {
			if c == nil {
				return ""
			}
			return c.String()
		}
		got := Of(c.spec, c.image)
		if name(got.Live) != c.live || name(got.Ready) != c.ready {
			t.Errorf("%s: live %q, ready %q, want %q and %q", c.name, name(got.Live), name(got.Ready), c.live, c.ready)
		}
	}
	if c := Of(&swarmpb.ContainerSpec{}, image).Live; c.Interval != 7*time.Second || c.Retries != 5 || c.Timeout != 30*time.Second || c.StartInterval != 5*time.Second {
		t.Errorf("%+v", c)
	}
}

func TestClean_AnyBytes_ValidAndBounded(t *testing.T) {
	for _, text := range []string{strings.Repeat("\xff\xfe", 5000), strings.Repeat("ü", 1000), "a\x1b[31mred\x00", strings.Repeat("x", 1024)} {
		got := clean(text)
		if !utf8.ValidString(got) || len(got) > MaxOutput || strings.ContainsAny(got, "\x1b\x00") {
			t.Errorf("%.20q became %d bytes, %.40q", text, len(got), got)
		}
	}
}
