// Command bench measures the whole product on one host, manager and worker in one swarmd: replicas created until
// all run, in turns with a loop over the bare containerd client on the same host; removal; scaling; memory; init
// and join; a rolling update; and, on two hosts, logs that are followed. It prints medians and ratios beside the targets and Docker Swarm's figures.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/swarmd/swarmd/e2e/lab"
	"github.com/swarmd/swarmd/e2e/measure"
)

func main() {
	lab.Dispatch()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// parts, each on a cluster of its own.
var parts = []struct {
	name string
	run  func(*bench, context.Context) error
}{
	{"starts", (*bench).starts},
	{"scale", (*bench).scale},
	{"memory", (*bench).memory},
	{"join", (*bench).join},
	{"logs", (*bench).logs},
	{"rollout", (*bench).rollout},
}

// bench is one run of the program.
type bench struct {
	cfg      measure.Config
	rounds   int
	replicas int
}

func run() error {
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	b := &bench{}
	only := flag.String("only", strings.Join(names, ","), "which parts, separated by commas")
	flag.IntVar(&b.rounds, "rounds", 3, "how often each is measured")
	flag.IntVar(&b.replicas, "replicas", 100, "containers a round")
	flag.StringVar(&b.cfg.Swarmd, "swarmd", "bin/swarmd", "the binary to measure")
	flag.StringVar(&b.cfg.Archive, "image", "build/whoami.tar", "the demo image")
	flag.StringVar(&b.cfg.Dir, "dir", "build/bench", "directory of the hosts; removed at the end")
	flag.Parse()
	chosen := strings.Split(*only, ",")
	for _, name := range chosen {
		if !slices.Contains(names, name) {
			return fmt.Errorf("-only %s: want some of %s", name, strings.Join(names, ","))
		}
	}
	if b.rounds < 1 || b.replicas < 1 || flag.NArg() > 0 {
		return errors.New("want -rounds and -replicas of at least 1 and no arguments")
	}
	for _, path := range []*string{&b.cfg.Swarmd, &b.cfg.Archive, &b.cfg.Dir} {
		var err error
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	for _, p := range parts {
		if !slices.Contains(chosen, p.name) {
			continue
		}
		fmt.Printf("-- %s (load %s)\n", p.name, measure.Load())
		if err := p.run(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// on lends a fresh cluster of one host.
func (b *bench) on(ctx context.Context, use func(*measure.Cluster) error) error {
	c, _, err := measure.Found(ctx, b.cfg)
	if err != nil {
		return err
	}
	return c.Close(use(c))
}
