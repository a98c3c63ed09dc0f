package node_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Tasks are moved: from a node that is drained, to one that has joined, from one that does not suit any more. Clients see to it that
// enough replicas serve meanwhile.
func TestPlacing_TasksMove_AndEnoughServeMeanwhile(t *testing.T) {
	t.Parallel()
	c := &netCluster{cluster: newHosts(t, 3)}
	c.form(t, 2) // the third host joins later
	t.Run("Drain_WithinTheBudget_SaysHowFarItIs", func(t *testing.T) { drainedWithinBudget(t, c) })
	t.Run("NodesReturnAndJoin_LoadEvensOut_ThenNothingMoves", func(t *testing.T) { evensOut(t, c) })
	t.Run("LabelTaken_TasksLeaveWithinTheBudget", func(t *testing.T) { labelTaken(t, c) })
}

// beginsSlowly are the flags of a service whose replicas serve a second after their start, and not before they are ready.
var beginsSlowly = []string{"--env", "HEALTHY_AFTER=1s", "--ready-http", ":80/readyz", "--ready-start-interval", "100ms", "--drain-timeout", "0s", "--no-resolve-image", "--pull", "never"}

// slowly makes a service of that kind, with a port.
func (c *netCluster) slowly(t *testing.T, name string, replicas, port int, flags ...string) []task {
	t.Helper()
	return c.create(t, name, replicas, slices.Concat(beginsSlowly, []string{"-p", strconv.Itoa(port) + ":80"}, flags)...)
}

func drainedWithinBudget(t *testing.T, c *netCluster) {
	c.ok(t, 1, "node", "update", "--availability", "pause", c.host(1).Name)
	c.slowly(t, "first", 4, 8101, "--update-order", "start-first", "--max-unavailable", "1")
	c.slowly(t, "later", 3, 8102, "--max-unavailable", "1") // stop-first
	if here := c.byNode(t, "first", "later"); len(here[c.host(1).Name]) > 0 {
		t.Fatalf("the paused node has got %s", describe(here[c.host(1).Name]))
	}
	c.ok(t, 1, "node", "update", "--availability", "active", c.host(1).Name)

	serving := c.watch(t, map[string]serves{"first": {port: 8101, least: 4, begin: 1}, "later": {port: 8102, least: 2, begin: 1}})
	out := c.ok(t, 1, "node", "update", "--availability", "drain", c.host(2).Name)
	serving.end()
	t.Logf("drain:\n%s", out)
	wantWords(t, out, c.host(2).Name+": 7 tasks left", "moving", "wait for their turn: 1 may be down or on the way (max unavailable)", c.host(2).Name+": drained, no task is left")

	if n := len(c.host(2).Containers()); n > 0 {
		t.Errorf("%d containers are on the node that was drained", n)
	}
	if out := c.ok(t, 1, "node", "ps", "--current", "-q", c.host(2).Name); out != "" {
		t.Errorf("node ps has tasks of the node that was drained: %s", out)
	}
	wantWords(t, c.ok(t, 1, "service", "ps", "first"), "moved to "+c.host(1).Name+": the node is drained")
	for name, n := range map[string]int{"first": 4, "later": 3} {
		for _, x := range c.runningAre(t, name, n) {
			if x.Node != c.host(1).Name {
				t.Errorf("%s is on %s", x.Name, x.Node)
			}
		}
	}
	c.remove(t, "first")
	c.remove(t, "later")
}

// evensOut begins with one node that takes tasks, another that was drained, and a third that is not in the cluster yet.
func evensOut(t *testing.T, c *netCluster) {
	c.slowly(t, "web", 3, 8103)
	stays := ids(c.create(t, "stays", 3, "--no-rebalance"))

	c.ok(t, 1, "node", "update", "--availability", "active", c.host(2).Name)
	before := ids(c.running(t, "web"))
	dry := c.ok(t, 1, "cluster", "rebalance", "--dry-run")
	t.Logf("cluster rebalance --dry-run:\n%s", dry)
	wantWords(t, dry, c.host(1).Name+" (3)", c.host(2).Name+" (0)", "would move", "stays: it opts out")
	if now := ids(c.runningAre(t, "web", 3)); !maps.Equal(now, before) {
		t.Errorf("after a dry run web is %v, was %v", now, before)
	}

	serving := c.watch(t, map[string]serves{"web": {port: 8103, least: 3, begin: 1}})
	c.ok(t, 1, "cluster", "update", "--rebalance")
	c.load(t, 3)
	c.join(t, 3)
	until(t, func() error {
		on := c.byNode(t, "web")
		for i := 1; i <= 3; i++ {
			if len(on[c.host(i).Name]) != 1 {
				return fmt.Errorf("web is not one a node:\n%s", describe(c.tasks(t, "web")))
			}
		}
		return nil
	})
	even := ids(c.runningAre(t, "web", 3))
	if n := len(c.tasks(t, "web")) - 3; n > 3 { // two are enough; each makes the load more even, and the third host may come after the second
		t.Errorf("web has been moved %d times:\n%s", n, describe(c.tasks(t, "web")))
	}

	// A request is done when there is nothing left to move, and nothing was.
	asked := time.Now()
	if out := c.ok(t, 1, "cluster", "rebalance"); !strings.Contains(out, "Nothing to move") {
		t.Errorf("once the load is even, cluster rebalance says %s", out)
	}
	until(t, func() error {
		if at := c.balanced(t, "web"); at.Before(asked) {
			return fmt.Errorf("the request of %s is not done for web; the newest that is done is of %s", asked, at)
		}
		return nil
	})
	serving.end()
	if now := ids(c.runningAre(t, "web", 3)); !maps.Equal(now, even) {
		t.Errorf("once the load was even, web has changed from %v to %v", even, now)
	}
	if now := ids(c.runningAre(t, "stays", 3)); !maps.Equal(now, stays) {
		t.Errorf("a service that is to stay has changed from %v to %v", stays, now)
	}
	c.ok(t, 1, "cluster", "update", "--no-rebalance")
	c.remove(t, "web")
	c.remove(t, "stays")
}

func labelTaken(t *testing.T, c *netCluster) {
	for _, i := range []int{2, 3} {
		c.ok(t, 1, "node", "update", "--label-add", "disk=ssd", c.host(i).Name)
	}
	c.slowly(t, "fast", 4, 8104, "--constraint", "node.labels.disk==ssd", "--max-unavailable", "1")
	serving := c.watch(t, map[string]serves{"fast": {port: 8104, least: 3, begin: 1}})
	c.ok(t, 1, "node", "update", "--label-rm", "disk", c.host(2).Name)
	until(t, func() error {
		if on := c.byNode(t, "fast"); len(on[c.host(3).Name]) != 4 || len(c.running(t, "fast")) != 4 {
			return fmt.Errorf("fast is not on %s alone:\n%s", c.host(3).Name, describe(c.tasks(t, "fast")))
		}
		return nil
	})
	serving.end()
	c.runningAre(t, "fast", 4)
	wantWords(t, c.ok(t, 1, "service", "ps", "fast"), "moved to "+c.host(3).Name+": the node does not meet the service's constraints any more")
	c.remove(t, "fast")
}

// ids of tasks, by name.
func ids(tasks []task) map[string]string {
	out := map[string]string{}
	for _, x := range tasks {
		out[x.Name] = x.ID
	}
	return out
}

// byNode are the services' tasks that have not ended.
func (c *cluster) byNode(t *testing.T, services ...string) map[string][]task {
	t.Helper()
	out := map[string][]task{}
	for _, x := range c.allTasks(t) {
		if slices.Contains(services, x.Service) && !slices.Contains([]string{"complete", "shutdown", "failed", "rejected"}, x.State) {
			out[x.Node] = append(out[x.Node], x)
		}
	}
	return out
}

// balanced is when the newest request for balance was made that is done with for a service; zero for none.
func (c *cluster) balanced(t *testing.T, service string) time.Time {
	t.Helper()
	text, _ := dig(c.inspected(t, "service", service), "progress", "balancedAt").(string)
	at, _ := time.Parse(time.RFC3339Nano, text)
	return at
}

// serves is what clients are to see of a service.
type serves struct {
	port  int
	least int // replicas that serve at any time
	begin int // replicas that may be on their way at a time
}

// batch is how many requests show which replicas serve: it is practically certain that each of a few gets one of them.
const batch = 60

// watching looks at services all the time.
type watching struct {
	cancel context.CancelFunc
	all    sync.WaitGroup
}

// watch has clients ask for services through the mesh, and looks at their tasks, until it is ended.
func (c *netCluster) watch(t *testing.T, of map[string]serves) *watching {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := &watching{cancel: cancel}
	t.Cleanup(w.end)
	repeat := func(fn func() error) {
		w.all.Go(func() {
			for ; ctx.Err() == nil; pause(ctx, 200*time.Millisecond) {
				if err := fn(); err != nil {
					t.Errorf("%s %v", time.Now().Format("15:04:05.000"), err)
					return
				}
			}
		})
	}
	for name, s := range of {
		client := newConnections(c.lab.Dial)
		for _, i := range []int{1, 2} {
			repeat(func() error { return s.ask(client, name, url4(c.host(i), s.port, "/tiny")) })
		}
	}
	repeat(func() error { return c.onTheirWay(of) })
	return w
}

// ask sends a batch. Every replica that serves all through it is seen, so that it does not matter what changes meanwhile.
func (s serves) ask(client *http.Client, name, url string) error {
	seen := map[string]bool{}
	for range batch {
		x, err := ask(client, url)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		seen[x.task] = true
	}
	if len(seen) < s.least {
		return fmt.Errorf("%s: %d replicas serve at %s, want %d", name, len(seen), url, s.least)
	}
	return nil
}

// onTheirWay wants that no more replicas are on their way than may be.
func (c *cluster) onTheirWay(of map[string]serves) error {
	out, errs, code := c.ctl(c.via, "task", "ls", "--format", "json")
	var tasks []task
	if err := json.Unmarshal([]byte(out), &tasks); code != 0 || err != nil {
		return fmt.Errorf("task ls: exit %d, %w: %s", code, err, errs)
	}
	begin := map[string]int{}
	for _, x := range tasks {
		if x.DesiredState == "running" && x.State != "running" {
			begin[x.Service]++
		}
	}
	for name, s := range of {
		if begin[name] > s.begin {
			return fmt.Errorf("%s: %d replicas are on their way, want %d:\n%s", name, begin[name], s.begin, describe(tasks))
		}
	}
	return nil
}

func (w *watching) end() {
	w.cancel()
	w.all.Wait()
}
