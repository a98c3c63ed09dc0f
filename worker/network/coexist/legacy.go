package coexist

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// legacy looks after iptables of the old kind, which only its own program can speak with.
type legacy struct {
	links []string
	// run runs a command and returns what it wrote; errNoProgram where there is none.
	run func(program string, args ...string) (string, error)
}

var errNoProgram = errors.New("program not found")

// legacyKinds are the programs, and the file in which the kernel names the tables in use.
var legacyKinds = []struct{ program, tables string }{
	{"iptables-legacy", "/proc/net/ip_tables_names"},
	{"ip6tables-legacy", "/proc/net/ip6_tables_names"},
}

func (*legacy) name() string { return "iptables (legacy)" }

// runLegacy runs the program where the kernel has a filter table of the old kind; else it has nothing to say.
func runLegacy(program string, args ...string) (string, error) {
	for _, kind := range legacyKinds {
		if kind.program != program {
			continue
		}
		tables, err := os.ReadFile(kind.tables)
		if err != nil || !strings.Contains("\n"+string(tables), "\nfilter\n") {
			return "", nil
		}
	}
	path, err := exec.LookPath(program)
	if err != nil {
		return "", errNoProgram
	}
	out, err := exec.Command(path, append([]string{"-w", "5", "-t", "filter"}, args...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// accepts are the rules, without the chain, as -S writes them.
func (l *legacy) accepts() []string {
	var out []string
	for _, link := range l.links {
		for _, direction := range []string{"-i", "-o"} {
			out = append(out, fmt.Sprintf("%s %s -m comment --comment %s -j ACCEPT", direction, plus(link), comment))
		}
	}
	return out
}

func (l *legacy) open() (added int, problems []string, err error) {
	for _, kind := range legacyKinds {
		rules, err := l.run(kind.program, "-S", "FORWARD")
		if errors.Is(err, errNoProgram) {
			problems = append(problems, fmt.Sprintf("this host has iptables of the old kind, but not the program %s, so nobody can say whether it drops what the cluster forwards; install it, or see that FORWARD accepts %s",
				kind.program, strings.Join(l.links, ", ")))
			continue
		}
		if err != nil {
			return added, problems, err
		}
		if !strings.Contains(rules, "-P FORWARD DROP\n") && !strings.Contains(rules, "-A FORWARD -j DROP\n") && !strings.Contains(rules, "-A FORWARD -j REJECT") {
			continue
		}
		chain := "FORWARD"
		if first := firstForeign(rules); strings.HasSuffix(first, "-j DOCKER-USER") {
			chain = "DOCKER-USER"
			if rules, err = l.run(kind.program, "-S", chain); err != nil {
				return added, problems, err
			}
		}
		for _, accept := range l.accepts() {
			if strings.Contains(rules, "-A "+chain+" "+accept+"\n") {
				continue
			}
			if _, err := l.run(kind.program, append([]string{"-I", chain}, strings.Fields(accept)...)...); err != nil {
				return added, problems, err
			}
			added++
		}
	}
	return added, problems, nil
}

// firstForeign is the first rule of a listing that is not ours.
func firstForeign(rules string) string {
	for line := range strings.Lines(rules) {
		if strings.HasPrefix(line, "-A ") && !strings.Contains(line, "--comment "+comment+" ") {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

func (l *legacy) close() error {
	var errs []error
	for _, kind := range legacyKinds {
		rules, err := l.run(kind.program, "-S")
		if err != nil {
			if !errors.Is(err, errNoProgram) { // without it, we have put nothing there
				errs = append(errs, err)
			}
			continue
		}
		for line := range strings.Lines(rules) {
			rule, ok := strings.CutPrefix(strings.TrimSpace(line), "-A ")
			if !ok || !strings.Contains(rule, "--comment "+comment+" ") {
				continue
			}
			_, err := l.run(kind.program, append([]string{"-D"}, strings.Fields(rule)...)...)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
