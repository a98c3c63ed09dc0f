// Package program says what the test image's one binary does with its arguments. The binary runs a Program for
// real and runtimetest.Fake plays it in memory, so the two cannot drift.
//
//	sleep [DUR]            exit 0 after DUR (default: never); a signal ends it with 128 + signal
//	exit N [DUR]           exit N after DUR (default: at once)
//	ignore-term [DUR]      as sleep, but SIGTERM does nothing
//	print TEXT [DUR]       TEXT as a line on stdout and "err " + TEXT on stderr, then as sleep (default: exit 0 at once)
//	report FILE [PROBE...] write a Report as JSON to FILE and exit 0; a probe is read:PATH or write:PATH
//	hog BYTES              touch so much memory, then as sleep
//	flood                  write to stdout for ever
//	leak                   leave a process behind that holds on to the output, in a session of its own, and exit 0
//
// DUR is a Go duration or a number of seconds.
package program

import (
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"
)

// Forever is the duration of what never ends by itself.
const Forever time.Duration = -1

// Kind of program.
type Kind int

// Kinds, one a subcommand.
const (
	Sleep Kind = iota + 1
	Exit
	IgnoreTerm
	Print
	WriteReport
	Hog
	Flood
	Leak
)

// Program is what a command line of the test binary means.
type Program struct {
	Kind   Kind
	Code   int           // its exit code when it ends by itself
	After  time.Duration // when it ends by itself; Forever = never
	Text   string        // print
	File   string        // report
	Probes []string      // report
	Bytes  int64         // hog
}

// Report is what a process sees of the container around it.
type Report struct {
	Args     []string
	Env      []string
	Dir      string
	UID, GID int
	Groups   []int
	Hostname string
	// Resolv and Hosts are the contents of /etc/resolv.conf and /etc/hosts.
	Resolv, Hosts string
	// Probes: what came of each, by its text.
	Probes map[string]Probe
	// Limits: -1 = none, 0 = cannot be read in the container. CPU is in billionths of a core.
	MemoryLimit, PidsLimit, NanoCPUs int64
	// From /proc/self/status.
	CapEff     uint64
	NoNewPrivs bool
	Seccomp    bool
}

// Probe is the outcome of one read or write.
type Probe struct {
	Text string // what was read
	Err  string
}

// Parse reads a command line; its first word may be the binary itself.
func Parse(argv []string) (Program, error) {
	if len(argv) > 0 && path.Base(argv[0]) == "testimage" {
		argv = argv[1:]
	}
	if len(argv) == 0 {
		return Program{Kind: Sleep, After: Forever}, nil
	}
	name, args := argv[0], argv[1:]
	switch name {
	case "sleep":
		after, err := duration(args, 0, Forever)
		return Program{Kind: Sleep, After: after}, err
	case "ignore-term":
		after, err := duration(args, 0, Forever)
		return Program{Kind: IgnoreTerm, After: after}, err
	case "exit":
		code, err := number(name, args)
		if err != nil {
			return Program{}, err
		}
		after, err := duration(args, 1, 0)
		return Program{Kind: Exit, Code: int(code), After: after}, err
	case "print":
		if len(args) == 0 {
			return Program{}, fmt.Errorf("print: a text is needed")
		}
		after, err := duration(args, 1, 0)
		return Program{Kind: Print, Text: args[0], After: after}, err
	case "report":
		if len(args) == 0 {
			return Program{}, fmt.Errorf("report: a file is needed")
		}
		return Program{Kind: WriteReport, File: args[0], Probes: args[1:]}, nil
	case "flood":
		return Program{Kind: Flood, After: Forever}, nil
	case "leak":
		return Program{Kind: Leak}, nil
	case "hog":
		n, err := number(name, args)
		return Program{Kind: Hog, Bytes: n, After: Forever}, err
	}
	return Program{}, fmt.Errorf("unknown program %q", name)
}

func number(name string, args []string) (int64, error) {
	if len(args) == 0 {
		return 0, fmt.Errorf("%s: a number is needed", name)
	}
	n, err := strconv.ParseInt(args[0], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %q is not a number", name, args[0])
	}
	return n, nil
}

func duration(args []string, i int, otherwise time.Duration) (time.Duration, error) {
	if i >= len(args) {
		return otherwise, nil
	}
	text := args[i]
	if strings.Trim(text, "0123456789") == "" {
		text += "s"
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a duration", args[i])
	}
	return d, nil
}
