// Command netbench measures what the network's paths cost: CPU an operation of the whole lab, hosts, containers and clients, of
// requests through a published port and through a VIP, each against the container's own address and against HAProxy on the same
// path, in turns in one run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/swarmd/swarmd/e2e/lab"
	"github.com/swarmd/swarmd/e2e/measure"
)

func main() {
	lab.Dispatch()
	loadMain()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "netbench:", err)
		os.Exit(1)
	}
}

// bench is one run of the program.
type bench struct {
	cfg      measure.Config
	rounds   int
	requests int
	haproxy  string
	self     string

	*measure.Cluster
	client   *lab.Client
	children []*exec.Cmd
}

func run() error {
	b := &bench{}
	flag.IntVar(&b.rounds, "rounds", 7, "how often each path is measured")
	flag.IntVar(&b.requests, "requests", 4000, "new connections a measure; five times as many requests over kept ones")
	flag.StringVar(&b.cfg.Swarmd, "swarmd", "bin/swarmd", "the binary to measure")
	flag.StringVar(&b.cfg.Archive, "image", "build/whoami.tar", "the demo image")
	flag.StringVar(&b.cfg.Dir, "dir", "build/netbench-hosts", "directory of the hosts; removed at the end")
	flag.StringVar(&b.haproxy, "haproxy", "/usr/sbin/haproxy", "the proxy to compare with; empty = none")
	flag.Parse()
	if b.rounds < 1 || b.requests < 1 || flag.NArg() > 0 {
		return errors.New("want -rounds and -requests of at least 1 and no arguments")
	}
	if b.haproxy != "" {
		if _, err := os.Stat(b.haproxy); err != nil {
			return fmt.Errorf("%w; make bench-net installs it, -haproxy '' does without", err)
		}
	}
	for _, path := range []*string{&b.cfg.Swarmd, &b.cfg.Archive, &b.cfg.Dir} {
		var err error
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	var err error
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if b.Cluster, _, err = measure.Found(ctx, b.cfg); err != nil {
		return err
	}
	err = b.paths(ctx)
	for _, c := range b.children {
		_ = c.Process.Kill()
		_ = c.Wait()
	}
	return b.Close(err)
}
