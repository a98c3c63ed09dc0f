// Command scale measures what a cluster costs that nobody has the machines for: real managers, each a process of its own
// with the store, Raft on real files, the loops and the real gRPC services, and in another process simulated workers: they
// join, hold sessions, beat, take assignments and report, over mutual TLS on loopback, and start nothing. Every figure
// of it is of a simulation in that sense.
//
//	scale [-sizes 100x1000,1000x30000] [-runs 1] [-managers 3] [-lose] [-o chart.svg] [-with FILE] [-profiles DIR]
//
// For each size, NODESxTASKS: the time from one request until the last task is committed, delivered and reported
// RUNNING; the CPU of leader and followers in it, memory, and live heap a task; then the same of a service of ten
// replicas in the empty and in the full cluster. -lose ends a manager by signal 9 at last and waits until all its
// workers have sessions again. -with takes results of earlier runs, the lines of JSON that they printed, into table and chart. -profiles writes a CPU profile of each process for each of these phases.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

type size struct{ nodes, tasks int }

func (s size) String() string { return fmt.Sprintf("%d x %d", s.nodes, s.tasks) }

func parseSizes(text string) ([]size, error) {
	var out []size
	for part := range strings.SplitSeq(text, ",") {
		nodes, tasks, ok := strings.Cut(part, "x")
		n, err1 := strconv.Atoi(nodes)
		m, err2 := strconv.Atoi(tasks)
		if !ok || err1 != nil || err2 != nil || n < 1 || m < 1 {
			return nil, fmt.Errorf("size %q: use NODESxTASKS, for example 1000x30000", part)
		}
		out = append(out, size{n, m})
	}
	return out, nil
}

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "manager":
			child(runManager)
		case "fleet":
			child(runFleet)
		}
	}
	sizes := flag.String("sizes", "100x1000,1000x30000,5000x150000,10000x1000000", "NODESxTASKS, with commas between")
	managers := flag.Int("managers", 3, "managers of the cluster")
	runs := flag.Int("runs", 1, "clusters of each size, one after another")
	lose := flag.Bool("lose", false, "end a manager at last, and wait for its workers")
	chart := flag.String("o", "", "write a chart of cost against size, an SVG, into this file")
	with := flag.String("with", "", "a file with results of earlier runs, as they were printed, for table and chart")
	within := flag.Duration("within", 30*time.Minute, "give up a step after this long")
	profiles := flag.String("profiles", "", "write CPU profiles of all processes into this directory, one a phase")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	all, err := parseSizes(*sizes)
	var earlier []result
	if err == nil && *with != "" {
		earlier, err = readResults(*with)
	}
	if err == nil {
		err = measure(ctx, earlier, all, *runs, *chart, options{managers: *managers, lose: *lose, within: *within, profiles: *profiles})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

// child runs one of the roles of this program, and ends the process.
func child(run func(context.Context, *json.Encoder, *json.Decoder) error) {
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err := run(context.Background(), json.NewEncoder(os.Stdout), json.NewDecoder(os.Stdin)); err != nil {
		fmt.Fprintln(os.Stderr, strings.Join(os.Args[1:2], " ")+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// options are those of each cluster.
type options struct {
	managers int
	lose     bool
	within   time.Duration
	profiles string
}

// readResults reads what measure has printed.
func readResults(path string) (results []result, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for lines := json.NewDecoder(f); ; {
		var r result
		switch err := lines.Decode(&r); {
		case errors.Is(err, io.EOF):
			return results, nil
		case err != nil:
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		results = append(results, r)
	}
}

func measure(ctx context.Context, results []result, sizes []size, runs int, chart string, o options) error {
	for _, s := range sizes {
		for range runs {
			r, err := one(ctx, s, o)
			if err != nil {
				return errors.Join(fmt.Errorf("%s: %w", s, err), table(results))
			}
			results = append(results, r)
			line, err := json.Marshal(r)
			if err != nil {
				return err
			}
			fmt.Println(string(line))
		}
	}
	slices.SortStableFunc(results, func(x, y result) int { return cmp.Compare(x.Tasks, y.Tasks) })
	if err := table(results); err != nil {
		return err
	}
	if chart == "" {
		return nil
	}
	return os.WriteFile(chart, []byte(draw(results)), 0o644)
}

// result is one cluster's. Times are in seconds, of CPU too; memory in bytes.
type result struct {
	Nodes, Tasks                 int
	Join                         float64 // until all nodes were ready
	Time                         float64 // from the request until the last task was reported running
	LeaderCPU, FollowersCPU      float64
	WorkersCPU                   float64
	IdleCPU                      float64 // of all managers, a second, with the nodes alone
	LeaderRSS, FollowerRSS       int64
	HeapEmpty, HeapFull          []int64 // live, of each manager
	SmallEmpty, SmallFull        []float64
	Reconnect                    float64 `json:",omitempty"`
	Downs                        int
	LeaderRSSBefore, LeaderRSSAt int64 `json:",omitempty"`
}

// heapATask is the worst manager's.
func (r result) heapATask() float64 {
	most := 0.0
	for i := range r.HeapFull {
		if i < len(r.HeapEmpty) && r.HeapFull[i] > 0 {
			most = max(most, float64(r.HeapFull[i]-r.HeapEmpty[i])/float64(r.Tasks))
		}
	}
	return most
}

func (r result) cpuATask() float64 { return (r.LeaderCPU + r.FollowersCPU) / float64(r.Tasks) }

func median(of []float64) float64 {
	sorted := slices.Sorted(slices.Values(of))
	if len(sorted) == 0 {
		return 0
	}
	return sorted[len(sorted)/2]
}

func table(results []result) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SIMULATED WORKERS\tJOIN s\tRUNNING s\tTASKS/s\tLEADER CPU s\tALL MANAGERS us/TASK\tWORKERS CPU s\tLEADER RSS MiB\tHEAP B/TASK\t10 MORE: EMPTY s\tFULL s\tRATIO\tIDLE CPU/s\tRECONNECT s")
	for _, r := range results {
		fmt.Fprintf(w, "%d x %d\t%.1f\t%.2f\t%.0f\t%.1f\t%.0f\t%.1f\t%d\t%.0f\t%.3f\t%.3f\t%.2f\t%.2f\t%.1f\n", r.Nodes, r.Tasks, r.Join, r.Time, float64(r.Tasks)/r.Time,
			r.LeaderCPU, r.cpuATask()*1e6, r.WorkersCPU, r.LeaderRSS>>20, r.heapATask(), median(r.SmallEmpty), median(r.SmallFull),
			median(r.SmallFull)/max(median(r.SmallEmpty), 1e-9), r.IdleCPU, r.Reconnect)
	}
	return w.Flush()
}

func one(ctx context.Context, s size, o options) (r result, err error) {
	dir, err := os.MkdirTemp("", "swarmd-scale-")
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	managers := o.managers
	c := &cluster{dir: dir, within: o.within, profiles: o.profiles}
	defer func() {
		err = errors.Join(err, c.phase(""))
		c.end()
	}()
	r = result{Nodes: s.nodes, Tasks: s.tasks}
	began := time.Now()
	if err := c.start(ctx, managers, s.nodes); err != nil {
		return r, err
	}
	r.Join = time.Since(began).Seconds()
	if err := c.phase("idle"); err != nil {
		return r, err
	}
	before, idle := c.cpu(), time.Now()
	if err := pause(ctx, 5*time.Second); err != nil {
		return r, err
	}
	r.IdleCPU = (c.managersCPU() - sum(before[:managers])) / time.Since(idle).Seconds()
	if r.HeapEmpty, err = c.heap(); err != nil {
		return r, err
	}
	if err := c.phase("run"); err != nil {
		return r, err
	}
	if r.SmallEmpty, err = c.small(ctx, "empty"); err != nil {
		return r, err
	}
	leader, err := c.leader(ctx)
	if err != nil {
		return r, err
	}
	reported, err := c.reported()
	if err != nil {
		return r, err
	}
	before, began = c.cpu(), time.Now()
	if err := c.create(ctx, leader, "big", s.tasks); err != nil {
		return r, err
	}
	if err := c.running(ctx, leader, "big", s.tasks, reported); err != nil {
		return r, err
	}
	r.Time = time.Since(began).Seconds()
	after := c.cpu()
	for i := range managers {
		used := after[i] - before[i]
		if i == leader {
			r.LeaderCPU = used
		} else {
			r.FollowersCPU += used
		}
	}
	r.WorkersCPU = after[managers] - before[managers]
	r.LeaderRSS = c.managers[leader].rss()
	r.FollowerRSS = c.managers[(leader+1)%managers].rss()
	if err := c.phase("full"); err != nil {
		return r, err
	}
	if r.HeapFull, err = c.heap(); err != nil {
		return r, err
	}
	if r.SmallFull, err = c.small(ctx, "full"); err != nil {
		return r, err
	}
	if r.Downs, err = c.downs(ctx, leader); err != nil {
		return r, err
	}
	if o.lose && managers > 2 {
		if err := c.phase("lose"); err != nil {
			return r, err
		}
		err = c.lose(ctx, &r)
	}
	return r, err
}

func sum(of []float64) (total float64) {
	for _, x := range of {
		total += x
	}
	return total
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// socket is where a manager answers the parent.
func socket(dir string, i int) string { return filepath.Join(dir, fmt.Sprintf("m%d.sock", i)) }
