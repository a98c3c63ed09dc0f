// Command testimage is the one binary of the image that the conformance suite runs: see package program for what
// it does.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/swarmd/swarmd/worker/runtime/runtimetest/program"
)

func main() {
	code, err := run(os.Args)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testimage:", err)
	}
	os.Exit(code)
}

func run(argv []string) (int, error) {
	p, err := program.Parse(argv)
	if err != nil {
		return 2, err
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	switch p.Kind {
	case program.Print:
		fmt.Println(p.Text)
		fmt.Fprintln(os.Stderr, "err "+p.Text)
	case program.WriteReport:
		if err := writeReport(p); err != nil {
			return 1, err
		}
	case program.Flood:
		for {
			if _, err := os.Stdout.WriteString(strings.Repeat("flood\n", 1<<10)); err != nil {
				return 1, err
			}
		}
	case program.Leak:
		left := exec.Command("/proc/self/exe", "ignore-term")
		left.Stdout, left.Stderr = os.Stdout, os.Stderr
		left.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := left.Start(); err != nil {
			return 1, err
		}
	case program.Hog:
		hog := make([]byte, p.Bytes)
		for i := 0; i < len(hog); i += 4096 {
			hog[i] = 1
		}
		defer func() { fmt.Fprintln(os.Stderr, "held", len(hog)) }()
	}
	if p.After == 0 {
		return p.Code, nil
	}
	return wait(p, signals), nil
}

func wait(p program.Program, signals <-chan os.Signal) int {
	var end <-chan time.Time
	if p.After > 0 {
		end = time.After(p.After)
	}
	for {
		select {
		case s := <-signals:
			if s == syscall.SIGTERM && p.Kind == program.IgnoreTerm {
				continue
			}
			number, _ := s.(syscall.Signal)
			return 128 + int(number)
		case <-end:
			return p.Code
		}
	}
}

func writeReport(p program.Program) error {
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	hostname, err := os.Hostname()
	if err != nil {
		return err
	}
	groups, err := os.Getgroups()
	if err != nil {
		return err
	}
	r := program.Report{
		Args: os.Args, Env: os.Environ(), Dir: dir, UID: os.Getuid(), GID: os.Getgid(), Groups: groups, Hostname: hostname,
		Resolv: read("/etc/resolv.conf"), Hosts: read("/etc/hosts"),
		Probes:      probe(p.Probes),
		MemoryLimit: limit("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"),
		PidsLimit:   limit("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"),
		NanoCPUs:    nanoCPUs(),
	}
	for line := range strings.Lines(read("/proc/self/status")) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch key {
		case "CapEff":
			r.CapEff, _ = strconv.ParseUint(value, 16, 64)
		case "NoNewPrivs":
			r.NoNewPrivs = value == "1"
		case "Seccomp":
			r.Seccomp = value == "2"
		}
	}
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return os.WriteFile(p.File, body, 0o644)
}

func probe(probes []string) map[string]program.Probe {
	out := make(map[string]program.Probe, len(probes))
	for _, text := range probes {
		verb, path, _ := strings.Cut(text, ":")
		var result program.Probe
		var err error
		switch verb {
		case "read":
			var body []byte
			body, err = os.ReadFile(path)
			result.Text = string(body)
		case "write":
			err = os.WriteFile(path, []byte(text), 0o644)
		default:
			err = errors.New("unknown probe")
		}
		if err != nil {
			result.Err = err.Error()
		}
		out[text] = result
	}
	return out
}

func read(path string) string {
	body, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(body)
}

// limit reads the first of the files that is there.
func limit(paths ...string) int64 {
	for _, path := range paths {
		text := strings.TrimSpace(read(path))
		if text == "" {
			continue
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n >= 1<<62 {
			return -1
		}
		return n
	}
	return 0
}

func nanoCPUs() int64 {
	quota, period := limit("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), limit("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
	if fields := strings.Fields(read("/sys/fs/cgroup/cpu.max")); len(fields) == 2 {
		quota, _ = strconv.ParseInt(fields[0], 10, 64)
		period, _ = strconv.ParseInt(fields[1], 10, 64)
		if fields[0] == "max" {
			return -1
		}
	}
	if quota <= 0 || period <= 0 {
		return quota
	}
	return quota * 1_000_000_000 / period
}
