// Package health asks tasks how they are: whether they live, and whether they are ready for connections.
//
// A Check says what is asked and how often; a Machine, which is pure, what follows from the answers; a Prober asks. Time counts as
// Docker's does: a task has its start period and then retries x interval to succeed for the first time, and retries failures in a row
// after that. Before the first success it is asked more often, so that it is ready soon; those extra failures do not count.
//
// The package promises that what is asked does no harm: a probe ends with its timeout, what it writes is bounded, what it leaves behind is
// killed (runtime.Exec), and one that hangs does not keep others from being asked. That a probe could not be made at all, for a
// fault of this host, is no answer and changes nothing.
package health

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime"
)

// Check is a probe with what counts for it. Its fields are set, the durations above zero, but for StartPeriod, which may be zero.
type Check struct {
	Probe *swarmpb.Probe
	// Interval is the pause between probes, and StartInterval that before the first success. Eager: StartInterval is a default, and
	// the first pauses are shorter still.
	Interval, StartInterval time.Duration
	Eager                   bool
	Timeout, StartPeriod    time.Duration
	Retries                 uint32
}

// Checks are what a task is asked; nil = nothing. The same Check for both is asked once.
type Checks struct{ Live, Ready *Check }

// Any tells whether the task is asked anything.
func (c Checks) Any() bool { return c.Live != nil || c.Ready != nil }

// AsksImage tells whether what a container is asked depends on its image.
func AsksImage(c *swarmpb.ContainerSpec) bool { return !c.GetNoHealthcheck() && c.GetHealth() == nil }

// Of are the checks of a container; image is its image's own, and may be nil.
func Of(c *swarmpb.ContainerSpec, image *runtime.Healthcheck) Checks {
	var out Checks
	if c.GetNoHealthcheck() {
		return out
	}
	if c.GetHealth() != nil {
		out.Live = newCheck(c.GetHealth())
	} else if probe := ofImage(image); probe != nil {
		out.Live = newCheck(probe)
	}
	out.Ready = out.Live
	if ready := newCheck(c.GetReady()); ready != nil {
		out.Ready = ready
	}
	return out
}

func newCheck(p *swarmpb.Probe) *Check {
	if p.GetKind() == nil {
		return nil
	}
	or := func(d *durationpb.Duration, otherwise time.Duration) time.Duration {
		if d.AsDuration() <= 0 {
			return otherwise
		}
		return d.AsDuration()
	}
	c := &Check{
		Probe: p, Interval: or(p.GetInterval(), swarmpb.DefaultProbeInterval), Timeout: or(p.GetTimeout(), swarmpb.DefaultProbeTimeout),
		StartPeriod: max(0, p.GetStartPeriod().AsDuration()), Retries: p.GetRetries(), Eager: p.GetStartInterval() == nil,
	}
	if c.Retries == 0 {
		c.Retries = swarmpb.DefaultProbeRetries
	}
	c.StartInterval = or(p.GetStartInterval(), min(swarmpb.DefaultProbeStartInterval, c.Interval))
	return c
}

// ofImage is an image's check as a probe; nil when it asks nothing that is understood.
func ofImage(h *runtime.Healthcheck) *swarmpb.Probe {
	if h == nil || len(h.Test) < 2 {
		return nil
	}
	exec := &swarmpb.ExecProbe{Command: h.Test[1:]}
	switch h.Test[0] {
	case "CMD":
	case "CMD-SHELL":
		exec.Shell, exec.Command = true, []string{strings.Join(h.Test[1:], " ")}
	default:
		return nil // NONE
	}
	span := func(d time.Duration) *durationpb.Duration {
		if d <= 0 {
			return nil
		}
		return durationpb.New(d)
	}
	return &swarmpb.Probe{
		Kind: &swarmpb.Probe_Exec{Exec: exec}, Interval: span(h.Interval), Timeout: span(h.Timeout), Retries: uint32(max(0, min(h.Retries, swarmpb.MaxProbeRetries))),
		StartPeriod: span(h.StartPeriod), StartInterval: span(h.StartInterval),
	}
}

// maxName bounds what of a command a user reads.
const maxName = 100

// String names the probe for a user: http :8080/healthz, cmd pg_isready -q.
func (c *Check) String() string {
	switch kind := c.Probe.GetKind().(type) {
	case *swarmpb.Probe_Exec:
		name := strings.ToValidUTF8("cmd "+strings.Join(kind.Exec.GetCommand(), " "), "\uFFFD")
		if len(name) > maxName {
			name = strings.ToValidUTF8(name[:maxName-3], "") + "..."
		}
		return name
	case *swarmpb.Probe_Http:
		scheme := "http"
		if kind.Http.GetHttps() {
			scheme = "https"
		}
		return scheme + " " + port(kind.Http.GetPort()) + pathOf(kind.Http)
	case *swarmpb.Probe_Tcp:
		return "tcp " + port(kind.Tcp.GetPort())
	case *swarmpb.Probe_Grpc:
		if service := kind.Grpc.GetService(); service != "" {
			return "grpc " + port(kind.Grpc.GetPort()) + "/" + service
		}
		return "grpc " + port(kind.Grpc.GetPort())
	}
	return fmt.Sprintf("%T", c.Probe.GetKind())
}

func port(n uint32) string { return net.JoinHostPort("", strconv.FormatUint(uint64(n), 10)) }

func pathOf(h *swarmpb.HTTPProbe) string {
	if h.GetPath() == "" {
		return "/"
	}
	return h.GetPath()
}
