package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// probeFlags are the --health-... or --ready-... flags.
type probeFlags struct {
	prefix                                        string
	cmd, http, tcp, grpc                          string
	interval, timeout, startPeriod, startInterval spanValue
	retries                                       numberValue
}

func (p *probeFlags) define(cmd *cobra.Command, prefix string) {
	p.prefix = prefix
	what := "is it alive? "
	if prefix == "ready" {
		what = "is it ready for connections? (default: as health says) "
	}
	f := cmd.Flags()
	f.StringVar(&p.cmd, prefix+"-cmd", "", what+"`command` in the container, exit code 0 means yes: one line for its /bin/sh, or a JSON array without a shell")
	f.StringVar(&p.http, prefix+"-http", "", what+"`[HOST]:PORT/PATH` to GET, http or with https:// in front; a status of 200 to 399 means yes")
	f.StringVar(&p.tcp, prefix+"-tcp", "", what+"`:PORT` to connect to")
	f.StringVar(&p.grpc, prefix+"-grpc", "", what+"`:PORT[/SERVICE]` to ask by grpc.health.v1, with TLS after grpcs://; SERVING means yes")
	valueFlag(f, &p.interval, prefix+"-interval", "30s", prefix+": pause between two probes")
	valueFlag(f, &p.timeout, prefix+"-timeout", "30s", prefix+": time after which a probe has failed")
	valueFlag(f, &p.retries, prefix+"-retries", "3", prefix+": `failures` in a row that count; 0 for the default")
	valueFlag(f, &p.startPeriod, prefix+"-start-period", "", prefix+": time from the start in which failures do not count, until one probe has succeeded")
	valueFlag(f, &p.startInterval, prefix+"-start-interval", "5s", prefix+": pause between two probes within the start period, and until the first success")
	for _, kind := range []string{"http", "tcp", "grpc"} {
		completeWords(cmd, prefix+"-"+kind, ":")
	}
}

// names of the flags.
func (p *probeFlags) kinds() []string { return p.flags("cmd", "http", "tcp", "grpc") }
func (p *probeFlags) timings() []string {
	return p.flags("interval", "timeout", "retries", "start-period", "start-interval")
}

func (p *probeFlags) flags(suffixes ...string) []string {
	out := make([]string, len(suffixes))
	for i, s := range suffixes {
		out[i] = p.prefix + "-" + s
	}
	return out
}

// givenFlags are those of the flags that were given.
func givenFlags(f *pflag.FlagSet, names []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !f.Changed(n) })
}

// apply changes the probe by the flags that were given.
func (p *probeFlags) apply(f *pflag.FlagSet, to **swarmpb.Probe) error {
	kinds, timings := givenFlags(f, p.kinds()), givenFlags(f, p.timings())
	switch {
	case len(kinds) > 1:
		return fmt.Errorf("--%s and --%s: a probe is of one kind; leave one of them out", kinds[0], kinds[1])
	case len(kinds) == 1 && f.Lookup(kinds[0]).Value.String() == "":
		if len(timings) > 0 {
			return fmt.Errorf("--%s: with --%s '' there is no probe that it could apply to; leave one of them out", timings[0], kinds[0])
		}
		*to = nil
		return nil
	case len(kinds) == 1:
		if err := p.setKind(kinds[0], orNew(to)); err != nil {
			return flagged(kinds[0], err)
		}
	case len(timings) > 0 && (*to).GetKind() == nil:
		return fmt.Errorf("--%s: the service has no %s probe of its own that it could apply to; say what is asked, by --%s",
			timings[0], p.prefix, strings.Join(p.kinds(), ", --"))
	}
	if len(timings) > 0 {
		probe := *to
		set(f, p.prefix+"-interval", &probe.Interval, p.interval.positive())
		set(f, p.prefix+"-timeout", &probe.Timeout, p.timeout.positive())
		if f.Changed(p.prefix + "-retries") {
			probe.Retries = 0
			if p.retries.n != nil {
				probe.Retries = uint32(min(*p.retries.n, math.MaxUint32)) // which is refused as too many
			}
		}
		set(f, p.prefix+"-start-period", &probe.StartPeriod, p.startPeriod.positive())
		set(f, p.prefix+"-start-interval", &probe.StartInterval, p.startInterval.positive())
	}
	return nil
}

// setKind makes the probe one of the kind that the flag stands for; what else it says stays.
func (p *probeFlags) setKind(flag string, probe *swarmpb.Probe) error {
	switch strings.TrimPrefix(flag, p.prefix+"-") {
	case "cmd":
		exec, err := parseProbeCommand(p.cmd)
		if err != nil {
			return err
		}
		probe.Kind = &swarmpb.Probe_Exec{Exec: exec}
	case "http":
		http, err := parseHTTPProbe(p.http)
		if err != nil {
			return err
		}
		probe.Kind = &swarmpb.Probe_Http{Http: http}
	case "tcp":
		port, err := parseProbePort(strings.TrimPrefix(p.tcp, "tcp://"))
		if err != nil {
			return fmt.Errorf("%w, as in :8080", err)
		}
		probe.Kind = &swarmpb.Probe_Tcp{Tcp: &swarmpb.TCPProbe{Port: port}}
	case "grpc":
		grpc, err := parseGRPCProbe(p.grpc)
		if err != nil {
			return err
		}
		probe.Kind = &swarmpb.Probe_Grpc{Grpc: grpc}
	}
	return nil
}

// parseProbeCommand reads one line for a shell, or ["program", "argument"].
func parseProbeCommand(s string) (*swarmpb.ExecProbe, error) {
	if !strings.HasPrefix(strings.ReplaceAll(s, " ", ""), `["`) {
		return &swarmpb.ExecProbe{Command: []string{s}, Shell: true}, nil
	}
	var words []string
	if err := json.Unmarshal([]byte(s), &words); err != nil || words[0] == "" {
		return nil, fmt.Errorf(`%q: want one line for a shell, or a JSON array of words such as ["/bin/check", "-q"]`, s)
	}
	return &swarmpb.ExecProbe{Command: words}, nil
}

// parseProbePort reads :8080. The probe asks the task itself, so there is no host to name.
func parseProbePort(s string) (uint32, error) {
	host, port, found := strings.Cut(s, ":")
	if !found {
		host, port = "", s
	}
	if host != "" {
		return 0, fmt.Errorf("%q: the task itself is asked, whatever its address; want :PORT", s)
	}
	n, err := portNumber(port)
	if err != nil {
		return 0, fmt.Errorf("%w; want :PORT", err)
	}
	return n, nil
}

// parseHTTPProbe reads [HOST]:PORT[/PATH], with http:// or https:// in front, where the port may be left out.
func parseHTTPProbe(s string) (*swarmpb.HTTPProbe, error) {
	const want = "want [HOST]:PORT/PATH, as in :8080/healthz or https://:8443/"
	p := &swarmpb.HTTPProbe{}
	rest, usual := s, uint32(0)
	if after, ok := strings.CutPrefix(s, "https://"); ok {
		rest, usual, p.Https = after, 443, true
	} else if after, ok := strings.CutPrefix(s, "http://"); ok {
		rest, usual = after, 80
	}
	if strings.ContainsFunc(rest, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) || r == '#' }) {
		return nil, fmt.Errorf("%q: an address has no spaces and no #; %s", s, want)
	}
	authority := rest
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		authority, p.Path = rest[:i], rest[i:]
		if rest[i] == '?' {
			p.Path = "/" + p.Path
		}
	}
	if strings.Contains(authority, "@") {
		return nil, fmt.Errorf("%q: a probe sends no credentials; %s", s, want)
	}
	if strings.Contains(authority, "://") || strings.HasPrefix(rest, "//") {
		return nil, fmt.Errorf("%q: %s", s, want)
	}
	if usual != 0 && authority != "" && !strings.Contains(authority, ":") {
		p.Host, p.Port = authority, usual
		return p, nil
	}
	host, port, err := net.SplitHostPort(authority)
	if err != nil {
		return nil, fmt.Errorf("%q: it has no port; %s", s, want)
	}
	if p.Port, err = portNumber(port); err != nil {
		return nil, fmt.Errorf("%w; %s", err, want)
	}
	if p.Host = host; strings.Contains(host, ":") {
		p.Host = "[" + host + "]" // as a Host header has it
	}
	return p, nil
}

// parseGRPCProbe reads :PORT[/SERVICE], with grpc:// or grpcs:// in front.
func parseGRPCProbe(s string) (*swarmpb.GRPCProbe, error) {
	rest, tls := strings.CutPrefix(s, "grpcs://")
	rest = strings.TrimPrefix(rest, "grpc://")
	port, service, named := strings.Cut(rest, "/")
	if named && service == "" {
		return nil, fmt.Errorf("%q: no service is named after the /; leave it out for the server as a whole", s)
	}
	n, err := parseProbePort(port)
	if err != nil {
		return nil, fmt.Errorf("%w[/SERVICE], as in :9000 or :9000/shop.Cart", err)
	}
	return &swarmpb.GRPCProbe{Port: n, Service: service, Tls: tls}, nil
}

// probeTarget is what a probe asks, as the flags say it.
func probeTarget(p *swarmpb.Probe) (kind, target string) {
	switch k := p.GetKind().(type) {
	case *swarmpb.Probe_Exec:
		if k.Exec.GetShell() {
			return "cmd", strings.Join(k.Exec.GetCommand(), " ")
		}
		words, _ := jsonText(k.Exec.GetCommand())
		return "cmd", words
	case *swarmpb.Probe_Http:
		scheme := ""
		if k.Http.GetHttps() {
			scheme = "https://"
		}
		return "http", scheme + k.Http.GetHost() + ":" + strconv.FormatUint(uint64(k.Http.GetPort()), 10) + k.Http.GetPath()
	case *swarmpb.Probe_Tcp:
		return "tcp", fmt.Sprintf(":%d", k.Tcp.GetPort())
	case *swarmpb.Probe_Grpc:
		target = fmt.Sprintf(":%d", k.Grpc.GetPort())
		if k.Grpc.GetTls() {
			target = "grpcs://" + target
		}
		if k.Grpc.GetService() != "" {
			target += "/" + k.Grpc.GetService()
		}
		return "grpc", target
	}
	return "", ""
}

// probeText is a probe for people; empty for none.
func probeText(p *swarmpb.Probe) string {
	kind, target := probeTarget(p)
	if kind == "" {
		return ""
	}
	parts := []string{kind + " " + target, "every " + orSpan(span(p.GetInterval()), "30s"), "timeout " + orSpan(span(p.GetTimeout()), "30s")}
	retries := p.GetRetries()
	if retries == 0 {
		retries = 3
	}
	parts = append(parts, count(retries, "failure")+" in a row count")
	if p.GetStartPeriod() != nil {
		parts = append(parts, "start period "+span(p.GetStartPeriod()))
	}
	if p.GetStartInterval() != nil {
		parts = append(parts, "every "+span(p.GetStartInterval())+" at first")
	}
	return strings.Join(parts, ", ")
}

func orSpan(text, unset string) string {
	if text == "" {
		return unset
	}
	return text
}

// stopFlags say what comes before the stop signal.
type stopFlags struct {
	preStop                                   string
	preStopTimeout, drainTimeout, gracePeriod spanValue
}

func (s *stopFlags) define(f *pflag.FlagSet) {
	valueFlag(f, &s.gracePeriod, "stop-grace-period", "", "time between the stop signal and SIGKILL (default 10s)")
	f.StringVar(&s.preStop, "pre-stop", "", "`command` to run in the container once it gets no new connections any more, before the stop signal; in one word, split as a shell does")
	valueFlag(f, &s.preStopTimeout, "pre-stop-timeout", "", "time that --pre-stop may take (default: the stop grace period)")
	valueFlag(f, &s.drainTimeout, "drain-timeout", "", "time that established connections have to end before the stop signal (default: the stop grace period)")
}

func (s *stopFlags) apply(f *pflag.FlagSet, c *swarmpb.ContainerSpec) error {
	if f.Changed("pre-stop") {
		words, err := splitWords(s.preStop)
		if err != nil {
			return flagged("pre-stop", err)
		}
		if c.PreStop = words; len(words) == 0 {
			c.PreStopTimeout = nil
		}
	}
	set(f, "stop-grace-period", &c.StopGracePeriod, s.gracePeriod.Duration)
	set(f, "pre-stop-timeout", &c.PreStopTimeout, s.preStopTimeout.Duration)
	set(f, "drain-timeout", &c.DrainTimeout, s.drainTimeout.Duration)
	if f.Changed("pre-stop-timeout") && c.PreStopTimeout != nil && len(c.PreStop) == 0 {
		return errors.New("--pre-stop-timeout: nothing runs before the stop; add --pre-stop")
	}
	return nil
}

// healthFlags are all that a service is asked how it is by.
type healthFlags struct {
	health, ready probeFlags
	none          bool
}

func (h *healthFlags) define(cmd *cobra.Command) {
	h.health.define(cmd, "health")
	h.ready.define(cmd, "ready")
	cmd.Flags().BoolVar(&h.none, "no-healthcheck", false, "ask nothing, not even what the image's HEALTHCHECK says")
}

func (h *healthFlags) apply(f *pflag.FlagSet, c *swarmpb.ContainerSpec) error {
	asked := givenFlags(f, slices.Concat(h.health.kinds(), h.health.timings(), h.ready.kinds(), h.ready.timings()))
	if f.Changed("no-healthcheck") && h.none {
		if len(asked) > 0 {
			return fmt.Errorf("--no-healthcheck and --%s: nothing is asked, or something; leave one of them out", asked[0])
		}
		c.NoHealthcheck, c.Health, c.Ready = true, nil, nil
		return nil
	}
	err := errors.Join(h.health.apply(f, &c.Health), h.ready.apply(f, &c.Ready))
	if f.Changed("no-healthcheck") || c.Health != nil || c.Ready != nil {
		c.NoHealthcheck = false
	}
	return err
}
