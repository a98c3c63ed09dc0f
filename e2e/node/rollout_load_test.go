package node_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// replicasUnderLoad is how many each service has.
const replicasUnderLoad = 3

// strategy is a way of updating that promises that no request fails.
type strategy struct {
	name  string
	flags []string
	// sets: old and new are there at the same time, and an update ends after a grace.
	sets, promote bool
}

var promising = []strategy{
	{name: "start-first", flags: []string{"--update-order", "start-first"}},
	{name: "stop-first", flags: []string{"--update-order", "stop-first"}},
	{name: "blue-green", flags: []string{"--update-strategy", "blue-green", "--promote-grace", "1s"}, sets: true, promote: true},
	{name: "canary", flags: []string{"--update-strategy", "canary", "--canary-steps", "25%:500ms,50%:500ms", "--promote-grace", "1s"}, sets: true},
}

// probes are the flags of a service that is asked how it is.
var probes = []string{"--health-http", ":80/healthz", "--health-interval", "500ms"}

// chosenStrategies are those of ROLLOUT_STRATEGIES, names separated by commas; all by default.
func chosenStrategies(t *testing.T) []strategy {
	t.Helper()
	text := os.Getenv("ROLLOUT_STRATEGIES")
	if text == "" {
		return promising
	}
	var out []strategy
	for _, name := range strings.Split(text, ",") {
		i := slices.IndexFunc(promising, func(s strategy) bool { return s.name == name })
		if i < 0 {
			t.Fatalf("ROLLOUT_STRATEGIES: there is no %q", name)
		}
		out = append(out, promising[i])
	}
	return out
}

// rolled is a service that is updated again and again under load.
type rolled struct {
	strategy
	name, image string
	port        int
}

func (c *netCluster) rolled(t *testing.T, s strategy, name string, port int, flags ...string) *rolled {
	t.Helper()
	all := append([]string{"--detach", "-p", fmt.Sprintf("%d:80", port), "--drain-timeout", "1s"}, s.flags...)
	c.create(t, name, replicasUnderLoad, append(all, flags...)...)
	return &rolled{strategy: s, name: name, image: "whoami:v1", port: port}
}

// both are two services, one that has a probe and one that has none.
func (c *netCluster) both(t *testing.T, s strategy, port int) []*rolled {
	t.Helper()
	return []*rolled{c.rolled(t, s, s.name, port), c.rolled(t, s, s.name+"-probed", port+1, probes...)}
}

// begin starts the next update and returns when the command does.
func (c *netCluster) begin(u *rolled) <-chan done {
	next := "whoami:v2"
	if u.image == next {
		next = "whoami:v1"
	}
	u.image = next
	return c.beside(c.via, "service", "update", "--image", next, u.name)
}

// finish takes an update that was begun to its end.
func (c *netCluster) finish(t *testing.T, u *rolled, update <-chan done) {
	t.Helper()
	d := <-update
	if d.code != 0 {
		t.Fatal(d.text())
	}
	if u.promote {
		wantWords(t, d.out, "waiting for promote")
		wantWords(t, c.ok(t, c.via, "service", "promote", u.name), "promoted: ")
	}
	c.rolloutIs(t, u.name, "completed", "")
	c.allOf(t, u.name, replicasUnderLoad, u.image)
}

// halfway waits until a task of the new image runs beside one of the old.
func (c *netCluster) halfway(t *testing.T, u *rolled) {
	t.Helper()
	until(t, func() error {
		all := c.running(t, u.name)
		if n := len(ofImage(all, u.image)); n == 0 || n == len(all) {
			return fmt.Errorf("%d of %d tasks of %s are of %s", n, len(all), u.name, u.image)
		}
		return nil
	})
}

func TestRollout_UnderLoad_NothingFails(t *testing.T) {
	t.Parallel()
	c := withClients(t, newManagers(t, 3, 2, nil), 2)
	updates, requests := number(t, "UPDATES", sized(1, 50)), number(t, "REQUESTS", sized(500, 1_000_000))
	t.Run("Strategies", func(t *testing.T) {
		for i, s := range chosenStrategies(t) {
			t.Run(s.name, func(t *testing.T) {
				if !soak() {
					t.Parallel()
				}
				services := c.both(t, s, 8100+10*i)
				c.underLoad(t, services, requests, func() {
					for n := range updates {
						var begun []<-chan done
						for _, u := range services {
							begun = append(begun, c.begin(u))
						}
						for i, u := range services {
							c.finish(t, u, begun[i])
						}
						if soak() {
							t.Logf("%s %s: update %d is done", time.Now().Format("15:04:05"), s.name, n+1)
						}
					}
				})
			})
		}
	})
	faults := number(t, "FAULTS", sized(1, 5))
	t.Run("LeaderKilledInTheMiddle", func(t *testing.T) { c.faulty(t, faults, c.leaderKilled) })
	t.Run("WorkerDrainedInTheMiddle", func(t *testing.T) { c.faulty(t, faults, c.workerDrained) })
}

// underLoad does something to services while requests are sent, at least so many, and wants that none fails.
func (c *netCluster) underLoad(t *testing.T, services []*rolled, requests int, change func()) {
	t.Helper()
	var ports []int
	var names []string
	for _, u := range services {
		ports, names = append(ports, u.port), append(names, u.name)
		defer c.remove(t, u.name)
		for _, client := range c.clients {
			for _, h := range c.lab.Hosts() {
				answers(t, client.Dial, url4(h, u.port, "/tiny"))
			}
		}
	}
	x := c.startTraffic(t, ports...)
	x.flows(t, 200)
	begun := time.Now()
	change()
	took := time.Since(begun)
	x.flows(t, max(200, int64(requests)-x.sent()))
	x.stop(t, strings.Join(names, ", "))
	t.Logf("the updates took %s", took.Round(time.Millisecond))
	for _, u := range services {
		c.serves(t, c.clients[0].Dial, url4(c.host(1), u.port, "/tiny"), c.running(t, u.name))
	}
}

// faulty updates a service of each strategy, all at the same time, with a fault in the middle, so many times.
func (c *netCluster) faulty(t *testing.T, times int, fault func(*testing.T)) {
	var services []*rolled
	for i, s := range chosenStrategies(t) {
		services = append(services, c.rolled(t, s, s.name, 8200+i, probes...))
	}
	c.underLoad(t, services, 0, func() {
		for range times {
			var begun []<-chan done
			for _, u := range services {
				begun = append(begun, c.begin(u))
			}
			c.halfway(t, services[0])
			fault(t)
			for i, u := range services {
				c.finish(t, u, begun[i])
			}
		}
	})
}

// restartPause is after how long swarmd is started again, as its unit says.
const restartPause = time.Second

// leaderKilled kills the swarmd that leads; it is started again as systemd does.
func (c *netCluster) leaderKilled(t *testing.T) {
	t.Helper()
	leader, _ := c.leader(t, 3)
	t.Logf("%s kills the leader node-%d", time.Now().Format("15:04:05.000"), leader)
	if err := c.host(leader).KillSwarmd(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(restartPause)
	if err := c.restart(leader); err != nil {
		t.Fatal(err)
	}
	c.voters(t, 3)
}

// workerDrained drains a worker until nothing runs on it, and has it back.
func (c *netCluster) workerDrained(t *testing.T) {
	t.Helper()
	const worker = "node-5"
	t.Logf("%s drains %s", time.Now().Format("15:04:05.000"), worker)
	c.ok(t, c.via, "node", "update", "--availability", "drain", worker)
	until(t, func() error {
		for _, x := range c.allTasks(t) {
			if x.Node == worker && (x.State == "running" || x.State == "starting") {
				return fmt.Errorf("%s of %s is %s", x.Name, worker, x.State)
			}
		}
		return nil
	})
	c.ok(t, c.via, "node", "update", "--availability", "active", worker)
}
