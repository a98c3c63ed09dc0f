// Command faults measures the time from a fault to its repair, on hosts with real containers: a container killed, a
// host killed, a lone manager's daemon killed and started again; with three managers the leader killed, paused, on a
// disk that hangs, and stopped as planned; with five the leader and a worker killed in the same instant. It prints
// median and worst beside Docker Swarm's.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/swarmd/swarmd/e2e/lab"
	"github.com/swarmd/swarmd/e2e/measure"
)

func main() {
	lab.Dispatch()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
		os.Exit(1)
	}
}

// peer's figures are those of Docker Swarm 28.5.2, measured on a quiet machine with 2 cores of the same kind.
const source = "Docker Swarm 28.5.2, measured on a quiet machine of the same kind (2 cores)"

// row is one line of the table.
type row struct {
	what string
	measure.Series
	peer string
}

// fault is a kind of fault: n of them, one after the other, and what was measured.
type fault struct {
	name              string
	managers, workers int
	// ownDisk: the hosts have disks that can hang.
	ownDisk bool
	try     func(ctx context.Context, c *measure.Cluster, n int) ([]row, error)
}

func run() error {
	faults := []fault{
		{"container", 1, 2, false, killContainer},
		{"host", 1, 2, false, killHost},
		{"manager", 1, 2, false, killManager},
		{"leader", 3, 1, true, loseLeader},
		{"stop", 3, 1, false, stopLeader},
		{"both", 5, 3, false, killLeaderAndHost},
	}
	var names []string
	for _, f := range faults {
		names = append(names, f.name)
	}
	runs := flag.Int("runs", 20, "how often each fault is tried")
	only := flag.String("only", strings.Join(names, ","), "which faults, separated by commas")
	binary := flag.String("swarmd", "bin/swarmd", "the binary to measure")
	archive := flag.String("image", "build/whoami.tar", "the demo image")
	dir := flag.String("dir", "build/faults", "directory of the hosts; removed at the end")
	flag.Parse()
	chosen := strings.Split(*only, ",")
	for _, name := range chosen {
		if !slices.Contains(names, name) {
			return fmt.Errorf("-only %s: want some of %s", name, strings.Join(names, ","))
		}
	}
	if *runs < 1 || flag.NArg() > 0 {
		return errors.New("want -runs of at least 1 and no arguments")
	}
	var cfg measure.Config
	for _, p := range []struct {
		to   *string
		from string
	}{{&cfg.Dir, *dir}, {&cfg.Swarmd, *binary}, {&cfg.Archive, *archive}} {
		var err error
		if *p.to, err = filepath.Abs(p.from); err != nil {
			return err
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()

	fmt.Printf("hosts on this machine, load %s at the start\n", measure.Load())
	var rows []row
	for _, f := range faults {
		if !slices.Contains(chosen, f.name) {
			continue
		}
		more, err := onHosts(ctx, cfg, *runs, f)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		rows = append(rows, more...)
	}
	fmt.Printf("load %s at the end\n\n", measure.Load())
	return print(os.Stdout, rows)
}

// diskMiB is the size of a host's own disk: well over the watermark under which a manager gives up leadership.
const diskMiB = 1024

func onHosts(ctx context.Context, cfg measure.Config, runs int, f fault) (rows []row, err error) {
	if f.ownDisk {
		cfg.DiskMiB = diskMiB
	}
	c, _, err := measure.Found(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() { err = c.Close(err) }()
	for range f.managers - 1 {
		if _, err := c.JoinManager(ctx); err != nil {
			return nil, err
		}
	}
	for range f.workers {
		if _, _, err := c.Join(ctx); err != nil {
			return nil, err
		}
	}
	return f.try(ctx, c, runs)
}

func print(to io.Writer, rows []row) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "FAULT\tMEDIAN\tWORST\tRUNS\tDOCKER SWARM")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", r.what, measure.Seconds(r.Median()), measure.Seconds(r.Worst()), len(r.Series), r.peer)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(to, "\nSource of the last column: %s.\n", source)
	return err
}
