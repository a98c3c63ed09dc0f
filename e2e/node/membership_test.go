package node_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/swarmd/swarmd/e2e/lab"
)

func TestMembership_JoinTokens(t *testing.T) {
	t.Parallel()
	c := newHosts(t, 3)
	manager := c.addr(1) + ":" + port
	c.refused(t, 1, []string{"belongs to no cluster", "swarmctl init"}, "service", "ls")
	c.ok(t, 1, "init", "--no-rebalance", "--advertise-addr", c.addr(1))
	token := c.token(t)
	for name, test := range map[string]struct {
		args  []string
		words []string
	}{
		"malformed token":     {[]string{"--token", "SWMTKN-rubbish", manager}, []string{"token"}},
		"wrong token":         {[]string{"--token", spoiled(token), manager}, []string{"token"}},
		"no token":            {[]string{manager}, []string{"--token", "join-token"}},
		"no manager there":    {[]string{"--token", token, c.addr(3) + ":" + port}, []string{c.addr(3)}},
		"no host there":       {[]string{"--token", token, "10.77.0.99:" + port}, []string{"10.77.0.99"}},
		"bad address":         {[]string{"--token", token, "10.77.0.1:no"}, []string{"10.77.0.1:no"}},
		"advertise elsewhere": {[]string{"--token", token, "--advertise-addr", "192.0.2.1", manager}, []string{"192.0.2.1", "eth0 " + c.addr(2)}},
	} {
		t.Run(name+"_JoinRefused", func(t *testing.T) {
			c.refused(t, 2, test.words, append([]string{"join"}, test.args...)...)
		})
	}
	t.Run("tokenOfAnotherCluster_JoinRefused", func(t *testing.T) {
		c.ok(t, 3, "init", "--advertise-addr", c.addr(3))
		other := strings.TrimSpace(c.ok(t, 3, "join-token", "-q", "worker"))
		c.refused(t, 2, []string{"cluster"}, "join", "--token", other, manager)
		c.refused(t, 3, []string{"already in cluster", "swarmctl leave"}, "join", "--token", token, manager)
		c.refused(t, 3, []string{"last manager", "--force"}, "leave")
		c.ok(t, 3, "leave", "--force")
	})
	t.Run("secondInit_Refused", func(t *testing.T) {
		c.refused(t, 1, []string{"init: this host is already in cluster", "swarmctl leave"}, "init")
	})
	t.Run("rotated_OldRefusedNewAccepted", func(t *testing.T) {
		c.ok(t, 1, "join-token", "--rotate", "worker")
		now := c.token(t)
		if now == token {
			t.Error("the token has not changed")
		}
		c.refused(t, 2, []string{"token"}, "join", "--token", token, manager)
		c.ok(t, 2, "join", "--token", now, manager)
		c.nodeIs(t, "node-2", "ready")
	})
	t.Run("worker_RefusesManagersCommands", func(t *testing.T) {
		for _, args := range [][]string{{"service", "ls"}, {"node", "ls"}, {"join-token", "worker"}, {"service", "create", "whoami:v1"}, {"task", "ls"}} {
			c.refused(t, 2, []string{"manager"}, args...)
		}
		c.refused(t, 2, []string{"join: this host is already in cluster"}, "join", "--token", c.token(t), manager)
	})
}

// spoiled is a token of the same shape with another secret.
func spoiled(token string) string {
	end := byte('0')
	if token[len(token)-1] == end {
		end = '1'
	}
	return token[:len(token)-1] + string(end)
}

func TestMembership_Leave(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.create(t, "web", 3, "-p", "mode=host,published=8080,target=80", "--mount", "type=volume,source=data,target=/data")
	t.Run("workerLeaves_NothingIsLeftOnIt_AndItsNodeCanBeRemoved", func(t *testing.T) {
		c.ok(t, 2, "leave")
		nothingLeft(t, c, 2)
		c.refused(t, 2, []string{"leave: this host belongs to no cluster"}, "leave")
		c.nodeIs(t, "node-2", "down")
		c.ok(t, 1, "node", "rm", "node-2")
		if _, there := c.nodes(t)["node-2"]; there {
			t.Error("node ls still lists node-2")
		}
	})
	t.Run("nodeRemovedWhileItRuns_RefusedWithoutForce_ToldWithIt", func(t *testing.T) {
		c.refused(t, 1, []string{"node-3", "--force"}, "node", "rm", "node-3")
		c.refused(t, 1, []string{"nobody"}, "node", "rm", "nobody")
		c.ok(t, 1, "node", "rm", "--force", "node-3")
		until(t, func() error {
			if out := c.ok(t, 3, "info"); !strings.Contains(out, "refuse") || !strings.Contains(out, "leave --force") {
				return errors.New("info on the removed node does not say that it was removed:\n" + out)
			}
			return nil
		})
		c.ok(t, 3, "leave", "--force")
		nothingLeft(t, c, 3)
		c.join(t, 3)
		c.nodeIs(t, "node-3", "ready")
	})
	t.Run("lastManagerLeaves_RefusedWithoutForce_NothingIsLeftWithIt", func(t *testing.T) {
		c.refused(t, 1, []string{"last manager", "--force"}, "leave")
		c.ok(t, 1, "leave", "--force")
		nothingLeft(t, c, 1)
		c.ok(t, 1, "init", "--no-rebalance", "--advertise-addr", c.addr(1))
		if out := c.ok(t, 1, "service", "ls", "-q"); out != "" {
			t.Errorf("a new cluster has services: %q", out)
		}
	})
}

// nothingLeft looks for traces of a membership on a host.
func nothingLeft(t *testing.T, c *cluster, host int) {
	t.Helper()
	h := c.host(host)
	if got := c.membership(t, host); got != "none" {
		t.Errorf("membership of %s is %q", h.Name, got)
	}
	if left := h.Containers(); len(left) > 0 {
		t.Errorf("containers on %s: %v", h.Name, left)
	}
	if left := h.Cgroups(); len(left) > 0 {
		t.Errorf("cgroups on %s: %v", h.Name, left)
	}
	for _, path := range []string{"data/identity", "data/node.json", "data/manager", "data/worker", "run/network/netns"} {
		if left, err := os.ReadDir(filepath.Join(h.Dir, path)); len(left) > 0 || err != nil && !errors.Is(err, os.ErrNotExist) && filepath.Ext(path) == "" {
			t.Errorf("%s on %s holds %v (%v)", path, h.Name, left, err)
		}
	}
	if _, err := os.Stat(filepath.Join(h.Dir, "data/node.json")); err == nil {
		t.Errorf("node.json is left on %s", h.Name)
	}
	networkLeft(t, h)
}

func networkLeft(t *testing.T, h *lab.Host) {
	t.Helper()
	var links []netlink.Link
	var tables []*nftables.Table
	err := h.Inside(func() (err error) {
		if links, err = netlink.LinkList(); err != nil {
			return err
		}
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		tables, err = conn.ListTables()
		return err
	})
	if err != nil {
		t.Error(err)
	}
	for _, l := range links {
		if name := l.Attrs().Name; strings.HasPrefix(name, "u-") || name == "swarm-up" {
			t.Errorf("link %s is left on %s", name, h.Name)
		}
	}
	for _, table := range tables {
		if table.Name == "swarmd" {
			t.Errorf("the rules are left on %s", h.Name)
		}
	}
	if out, _, err := h.Run("/bin/sh", "-c", "grep -E 'nsfs|netns/' /proc/self/mounts"); err != nil || out != "" {
		t.Errorf("namespaces are left mounted on %s: %s %v", h.Name, out, err)
	}
}
