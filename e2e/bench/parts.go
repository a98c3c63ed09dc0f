package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/swarmd/swarmd/e2e/measure"
)

// Targets of the starts, as multiples of the raw loop's.
const (
	targetTime = 1.25
	targetCPU  = 1.2
)

// cost of something done to all replicas.
type cost struct{ time, cpu measure.Series }

func (c *cost) add(took, cpu time.Duration) {
	c.time, c.cpu = append(c.time, took), append(c.cpu, cpu)
}

// meter counts CPU from now on: all processes of the host and this program's, which is the client of both.
func meter(h *measure.Host) (func() (time.Duration, error), error) {
	host, err := h.CPU()
	own := measure.OwnCPU()
	return func() (time.Duration, error) {
		now, err := h.CPU()
		return now - host + measure.OwnCPU() - own, err
	}, err
}

// template is the service whose container the raw loop copies.
const template = "template"

// variants of swarmd whose starts are measured, each on a cluster of its own beside its own raw loop, which has a shim for
// each container in all of them.
var variants = []struct {
	name, needs string
	env         []string
}{
	{name: "default: runc, a shim each"},
	{name: "--shared-shim", env: []string{"SWARMD_SHARED_SHIM=true"}},
	{name: "--oci-runtime crun", needs: "crun", env: []string{"SWARMD_OCI_RUNTIME=crun"}},
	{name: "--oci-runtime crun --shared-shim", needs: "crun", env: []string{"SWARMD_OCI_RUNTIME=crun", "SWARMD_SHARED_SHIM=true"}},
}

func (b *bench) starts(ctx context.Context) error {
	for _, v := range variants {
		if _, err := exec.LookPath(v.needs); v.needs != "" && err != nil {
			fmt.Printf("%s: there is no %s on this host\n", v.name, v.needs)
			continue
		}
		fmt.Printf("%s (load %s)\n", v.name, measure.Load())
		with := *b
		with.cfg.Env = v.env
		if err := with.startsOf(ctx); err != nil {
			return fmt.Errorf("%s: %w", v.name, err)
		}
	}
	return nil
}

func (b *bench) startsOf(ctx context.Context) error {
	return b.on(ctx, func(c *measure.Cluster) error {
		if _, err := createAll(ctx, c, template, 1); err != nil {
			return err
		}
		w, err := c.Watch(ctx, template)
		if err != nil {
			return err
		}
		w.Close()
		raw, err := newRawLoop(ctx, c.Manager(), slices.Collect(maps.Keys(w.RunningTasks()))[0], b.cfg.Archive)
		if err != nil {
			return err
		}
		defer raw.close()
		var product, bare, removed, bareRemoved cost
		var shims measure.Memory
		for round := range b.rounds {
			if shims, err = b.productRound(ctx, c, round, &product, &removed); err != nil {
				return err
			}
			if err := b.rawRound(ctx, c, raw, round, &bare, &bareRemoved); err != nil {
				return err
			}
		}
		fmt.Printf("%d replicas, %d rounds in turns, medians\n", b.replicas, b.rounds)
		out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintln(out, "WHAT\tPRODUCT\tRAW CONTAINERD\tRATIO\tTARGET\tDOCKER SWARM")
		b.row(out, "create: time until all run", product.time, bare.time, fmt.Sprintf("%.2f", targetTime), "7.32 s for 100")
		b.row(out, "create: CPU a replica", b.each(product.cpu), b.each(bare.cpu), fmt.Sprintf("%.2f", targetCPU), "105 to 129 ms")
		b.row(out, "remove: time until all gone", removed.time, bareRemoved.time, "", "9.5 s for 100")
		b.row(out, "remove: CPU a replica", b.each(removed.cpu), b.each(bareRemoved.cpu), "", "")
		if err := out.Flush(); err != nil {
			return err
		}
		fmt.Printf("%d shims: %.2f MB of PSS a replica\n", shims.Processes, float64(shims.PSS)/1e6/float64(b.replicas+1))
		return nil
	})
}

func (b *bench) each(s measure.Series) measure.Series {
	out := slices.Clone(s)
	for i := range out {
		out[i] /= time.Duration(b.replicas)
	}
	return out
}

func (b *bench) row(out *tabwriter.Writer, what string, product, raw measure.Series, target, peer string) {
	p, r := product.Median(), raw.Median()
	fmt.Fprintf(out, "%s\t%s\t%s\t%.2f\t%s\t%s\n", what, short(p), short(r), float64(p)/float64(r), target, peer)
}

func short(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	}
	return measure.Seconds(d)
}

// productRound also gives the memory of the shims while all run.
func (b *bench) productRound(ctx context.Context, c *measure.Cluster, round int, started, removed *cost) (shims measure.Memory, err error) {
	name := fmt.Sprintf("round-%d", round)
	cpu, err := meter(c.Manager())
	if err != nil {
		return shims, err
	}
	before := c.Manager().Kept()
	took, err := createAll(ctx, c, name, b.replicas)
	if err != nil {
		return shims, err
	}
	used, err := cpu()
	if err != nil {
		return shims, err
	}
	started.add(took, used)
	fmt.Fprintf(os.Stderr, "  product: %d running after %s, %s CPU each (load %s)\n", b.replicas, short(took), short(used/time.Duration(b.replicas)), measure.Load())
	kinds, err := c.Manager().Memory()
	if err != nil {
		return shims, err
	}
	if cpu, err = meter(c.Manager()); err != nil {
		return shims, err
	}
	if took, err = removeAll(ctx, c, name, before); err != nil {
		return shims, err
	}
	if used, err = cpu(); err == nil {
		removed.add(took, used)
	}
	return kinds["shim"], err
}

func (b *bench) rawRound(ctx context.Context, c *measure.Cluster, raw *rawLoop, round int, started, removed *cost) error {
	cpu, err := meter(c.Manager())
	if err != nil {
		return err
	}
	took, err := raw.startAll(ctx, round, b.replicas)
	if err != nil {
		_, _ = raw.removeAll()
		return err
	}
	used, err := cpu()
	if err != nil {
		return err
	}
	started.add(took, used)
	fmt.Fprintf(os.Stderr, "  raw:     %d running after %s, %s CPU each (load %s)\n", b.replicas, short(took), short(used/time.Duration(b.replicas)), measure.Load())
	if cpu, err = meter(c.Manager()); err != nil {
		return err
	}
	if took, err = raw.removeAll(); err != nil {
		return err
	}
	if used, err = cpu(); err == nil {
		removed.add(took, used)
	}
	return err
}

// createAll makes a service and returns how long it took until all its replicas ran.
func createAll(ctx context.Context, c *measure.Cluster, name string, replicas int) (time.Duration, error) {
	begin := time.Now()
	if err := c.Create(ctx, measure.Service(name, uint64(replicas))); err != nil {
		return 0, err
	}
	return settle(ctx, c, name, uint64(replicas), begin)
}

func settle(ctx context.Context, c *measure.Cluster, name string, replicas uint64, begin time.Time) (time.Duration, error) {
	w, err := c.Watch(ctx, name)
	if err != nil {
		return 0, err
	}
	defer w.Close()
	err = w.Until(func(p *measure.Picture) bool { return p.Running == replicas && p.Desired == replicas })
	return time.Since(begin), err
}

// removeAll removes a service and returns how long it took until all of it was gone: from what users see, and then, as the end of a
// task is told before what it leaves is taken away, from the host, which kept so much before the service was made.
func removeAll(ctx context.Context, c *measure.Cluster, name string, before int) (time.Duration, error) {
	w, err := c.Watch(ctx, name)
	if err != nil {
		return 0, err
	}
	defer w.Close()
	begin := time.Now()
	if err := c.Remove(ctx, name); err != nil {
		return 0, err
	}
	if err := w.Until(func(p *measure.Picture) bool { return p.Gone }); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, keptWithin)
	defer cancel()
	tick := time.NewTicker(keptEvery)
	defer tick.Stop()
	for c.Manager().Kept() > before {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, fmt.Errorf("wait until what tasks of %s have left is gone: %w", name, ctx.Err())
		}
	}
	return time.Since(begin), nil
}

// keptEvery is between two looks at what a host keeps, keptWithin when what was removed has to be gone from it.
const (
	keptEvery  = 5 * time.Millisecond
	keptWithin = 2 * time.Minute
)

func (b *bench) scale(ctx context.Context) error {
	return b.on(ctx, func(c *measure.Cluster) error {
		var took measure.Series
		for round := range b.rounds {
			name, before := fmt.Sprintf("round-%d", round), c.Manager().Kept()
			if _, err := createAll(ctx, c, name, 10); err != nil {
				return err
			}
			begin := time.Now()
			if err := c.Scale(ctx, name, 50); err != nil {
				return err
			}
			d, err := settle(ctx, c, name, 50, begin)
			if err != nil {
				return err
			}
			took = append(took, d)
			if _, err := removeAll(ctx, c, name, before); err != nil {
				return err
			}
		}
		fmt.Printf("scale 10 -> 50: %s (Docker Swarm: 2.9 s)\n", took)
		return nil
	})
}

// idleFor is how long nothing happens before memory is read.
const idleFor = 10 * time.Second

func (b *bench) memory(ctx context.Context) error {
	return b.on(ctx, func(c *measure.Cluster) error {
		out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintln(out, "RSS\tSWARMD\tCONTAINERD\tSUM\tA SHIM (RSS, PSS)\tDOCKER SWARM")
		if err := idle(ctx, out, c.Manager(), "manager and worker, idle", "74 + 36 = 110 MB"); err != nil {
			return err
		}
		if _, err := createAll(ctx, c, "memory", b.replicas); err != nil {
			return err
		}
		if err := idle(ctx, out, c.Manager(), fmt.Sprintf("with %d tasks", b.replicas), "138 + 57 = 195 MB with 100, 12 MB a shim"); err != nil {
			return err
		}
		return out.Flush()
	})
}

func idle(ctx context.Context, out *tabwriter.Writer, h *measure.Host, what, peer string) error {
	before, err := h.CPU()
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(idleFor):
	}
	after, err := h.CPU()
	if err != nil {
		return err
	}
	kinds, err := h.Memory()
	if err != nil {
		return err
	}
	mb := func(n int64) string { return fmt.Sprintf("%.0f MB", float64(n)/1e6) }
	daemon, containerd, shims := kinds["swarmd"], kinds["containerd"], kinds["shim"]
	shim := "none"
	if n := int64(shims.Processes); n > 0 {
		shim = fmt.Sprintf("%.1f, %.1f MB", float64(shims.RSS/n)/1e6, float64(shims.PSS/n)/1e6)
	}
	fmt.Fprintf(out, "%s (%.1f%% of a core)\t%s\t%s\t%s\t%s\t%s\n", what, 100*(after-before).Seconds()/idleFor.Seconds(),
		mb(daemon.RSS), mb(containerd.RSS), mb(daemon.RSS+containerd.RSS), shim, peer)
	return nil
}

func (b *bench) join(ctx context.Context) error {
	var inits, joins measure.Series
	for range b.rounds {
		c, took, err := measure.Found(ctx, b.cfg)
		if err != nil {
			return err
		}
		inits = append(inits, took)
		_, took, err = c.Join(ctx)
		if err = c.Close(err); err != nil {
			return err
		}
		joins = append(joins, took)
	}
	fmt.Printf("init until ready: %s (Docker Swarm: 0.63 s)\njoin until ready: %s (Docker Swarm: 0.37 s)\n", inits, joins)
	return nil
}
