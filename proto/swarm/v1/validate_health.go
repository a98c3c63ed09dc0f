package swarmpb

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"

	"google.golang.org/protobuf/types/known/durationpb"
)

// Limits of probes, and of what a task does before it stops.
const (
	// MinProbeTime is the least pause between probes, and time that one may take; MaxProbeTime the most.
	MinProbeTime = time.Millisecond
	MaxProbeTime = 24 * time.Hour
	// MaxProbeRetries bounds the failures in a row that a probe may have.
	MaxProbeRetries = 1000
	// MaxStopTime bounds how long connections, or the command before the stop, are waited for.
	MaxStopTime = 24 * time.Hour

	maxProbeText = 2048
)

// What a probe does when its spec does not say.
const (
	DefaultProbeInterval      = 30 * time.Second
	DefaultProbeTimeout       = 30 * time.Second
	DefaultProbeStartInterval = 5 * time.Second
	DefaultProbeRetries       = 3
)

func (p *problems) health(c *ContainerSpec) {
	if c.NoHealthcheck && (c.Health != nil || c.Ready != nil) {
		p.add("no healthcheck", "the task has probes of its own", "leave --no-healthcheck out, or the --health-* and --ready-* options")
	}
	p.probe("health", c.Health)
	p.probe("ready", c.Ready)
}

// probe checks one of a container's probes; field is health or ready.
func (p *problems) probe(field string, x *Probe) {
	if x == nil {
		return
	}
	switch kind := x.GetKind().(type) {
	case *Probe_Exec:
		p.execProbe(field+" cmd", kind.Exec)
	case *Probe_Http:
		p.httpProbe(field+" http", kind.Http)
	case *Probe_Tcp:
		p.probePort(field+" tcp", kind.Tcp.GetPort())
	case *Probe_Grpc:
		p.probePort(field+" grpc", kind.Grpc.GetPort())
		if service := kind.Grpc.GetService(); len(service) > maxProbeText || strings.ContainsFunc(service, unicode.IsControl) {
			p.add(fmt.Sprintf("%s grpc service %.40q", field, service), "it is not the name of a service", "use one as in PACKAGE.SERVICE, or none for the server as a whole")
		}
	default:
		p.add(field, "it asks nothing", fmt.Sprintf("give one of --%[1]s-cmd, --%[1]s-http, --%[1]s-tcp and --%[1]s-grpc", field))
	}
	p.span(field+" interval", x.Interval, MinProbeTime, MaxProbeTime, DefaultProbeInterval.String())
	p.span(field+" timeout", x.Timeout, MinProbeTime, MaxProbeTime, DefaultProbeTimeout.String())
	p.span(field+" start period", x.StartPeriod, 0, MaxProbeTime, "none")
	p.span(field+" start interval", x.StartInterval, MinProbeTime, MaxProbeTime, DefaultProbeStartInterval.String())
	if x.Retries > MaxProbeRetries {
		p.addf(field+" retries", fmt.Sprintf("use at most %d, or leave it out for %d", MaxProbeRetries, DefaultProbeRetries), "%d are too many", x.Retries)
	}
}

func (p *problems) execProbe(field string, x *ExecProbe) {
	command := x.GetCommand()
	p.command(field, command)
	switch {
	case len(command) == 0:
		p.add(field, "the command is empty", "name a program in the image")
	case x.GetShell() && len(command) != 1:
		p.addf(field, "give one line, or a command without the shell", "a shell takes one line, not %d words", len(command))
	case strings.TrimSpace(command[0]) == "":
		p.add(field, "the command is empty", "name a program in the image")
	}
}

// command checks the words of a command for what no kernel takes.
func (p *problems) command(field string, words []string) {
	if i := slices.IndexFunc(words, hasNUL); i >= 0 {
		p.add(fmt.Sprintf("%s word %d", field, i+1), "it holds a NUL byte", "remove it")
	}
}

func (p *problems) httpProbe(field string, x *HTTPProbe) {
	p.probePort(field, x.GetPort())
	bad := func(s string) bool {
		return len(s) > maxProbeText || strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) })
	}
	if path := x.GetPath(); path != "" {
		if _, err := url.ParseRequestURI(path); err != nil || !strings.HasPrefix(path, "/") || bad(path) {
			p.add(fmt.Sprintf("%s path %.40q", field, path), "it is not the path of a URL", "use one such as /healthz")
		}
	}
	if host := x.GetHost(); host != "" {
		if u, err := url.Parse("http://" + host + "/"); err != nil || u.Host != host || u.User != nil || bad(host) {
			p.add(fmt.Sprintf("%s host %.40q", field, host), "it is not a host", "use one such as www.example.org, or leave it out for localhost")
		}
	}
}

func (p *problems) probePort(field string, port uint32) {
	if port < 1 || port > MaxPort {
		p.addf(field, fmt.Sprintf("use the container's, 1 to %d", MaxPort), "%d is not a port", port)
	}
}

// span checks a time span that may be unset, which means unset, and lies within bounds otherwise.
func (p *problems) span(field string, d *durationpb.Duration, least, most time.Duration, unset string) {
	p.duration(field, d)
	switch value := d.AsDuration(); {
	case d == nil || d.CheckValid() != nil || value < 0:
	case value < least:
		p.addf(field, fmt.Sprintf("use %s or more, or leave it out for %s", least, unset), "%s is too short", value)
	case value > most:
		p.addf(field, fmt.Sprintf("use at most %s", most), "%s is too long", value)
	}
}

// stopping checks what comes before a task's stop signal.
func (p *problems) stopping(c *ContainerSpec) {
	const grace = "the stop grace period"
	p.command("pre-stop", c.PreStop)
	if len(c.PreStop) > 0 && strings.TrimSpace(c.PreStop[0]) == "" {
		p.add("pre-stop", "the command is empty", "name a program in the image, or leave it out")
	}
	if len(c.PreStop) == 0 && c.PreStopTimeout != nil {
		p.add("pre-stop timeout", "there is no command before the stop", "give --pre-stop as well, or leave it out")
	}
	p.span("pre-stop timeout", c.PreStopTimeout, MinProbeTime, MaxStopTime, grace)
	p.span("drain timeout", c.DrainTimeout, 0, MaxStopTime, grace)
}
