package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/swarmd/swarmd/proto/wire"
)

func TestWrongInput_AnyKind_OneLineAndExit1(t *testing.T) {
	f := start(t, false)
	var got strings.Builder
	for _, args := range [][]string{
		{"srvice"}, {"service", "lss"}, {"service", "frobnicate"}, {"help", "nope"}, {"help", "service", "nope"}, {"--nope"}, {"-z"}, {"service", "ls", "--nope"},
		{"service", "create", "-z", "nginx"}, {"service", "create", "--name"}, {"service", "create", "-e"},
		{"service", "ls", "extra"}, {"info", "extra"}, {"init", "extra"}, {"leave", "extra"}, {"version", "extra"},
		{"service", "create"}, {"service", "create", ""}, {"service", "update"}, {"service", "update", "web", "api"}, {"service", "rm"}, {"service", "ps"}, {"service", "inspect"}, {"service", "scale"},
		{"node", "inspect"}, {"node", "rm"}, {"node", "promote"}, {"node", "demote"}, {"node", "update"}, {"node", "update", "n2"}, {"node", "update", "--availability", "active", "n1", "n2"},
		{"node", "update", "--availability", "gone", "n2"}, {"node", "update", "--label-add", "=x", "n2"}, {"node", "update", "--label-rm", "nope", "n2"}, {"node", "update", "--availability", "drain", "nope"},
		{"node", "update", "--label-add", "a=b", "--timeout", "1m", "n2"}, {"node", "update", "--availability", "pause", "-d", "n2"}, {"node", "update", "--availability", "drain", "--timeout", "-1s", "n2"},
		{"cluster", "rebalanse"}, {"cluster", "update"}, {"init", "--gossip-key-rotation", "1m"},
		{"node", "promote", "nope"}, {"node", "demote", "--timeout", "0s", "n1"}, {"node", "promote", "--stale", "n2"}, {"service", "rm", "--stale", "web"}, {"image", "ls", "--stale"},
		{"service", "create", "--stop-after-disconnect", "30", "nginx"}, {"service", "create", "--stop-after-disconnect", "-1s", "nginx"}, {"service", "create", "--stop-after-disconnect", "1ms", "nginx"},
		{"task", "inspect"}, {"image", "load"}, {"image", "load", "a", "b"}, {"image", "rm"}, {"image", "load", "/nonexistent.tar"},
		{"join"}, {"join", "--token", "x"}, {"join", "--token", "x", "host:port:x"}, {"join", "--token", "x", "host:99999"}, {"join", "10.0.0.1"},
		{"join-token"}, {"join-token", "boss"}, {"join-token", "worker", "manager"}, {"init", "--cert-expiry", "90d"}, {"init", "--task-history-limit", "-1"},
		{"service", "create", "--replicas", "-1", "nginx"}, {"service", "create", "--replicas", "many", "nginx"}, {"service", "create", "--mode", "job", "nginx"},
		{"service", "create", "--mode", "global", "--replicas", "2", "nginx"},
		{"service", "create", "-p", "0:80", "nginx"}, {"service", "create", "-p", "80000:80", "nginx"}, {"service", "create", "-p", "web", "nginx"}, {"service", "create", "-p", "published=80", "nginx"},
		{"service", "create", "-p", "80/icmp", "nginx"}, {"service", "create", "-p", "mode=node,target=80", "nginx"}, {"service", "create", "-p", "target=80,colour=red", "nginx"}, {"service", "create", "-p", `"`, "nginx"},
		{"service", "create", "--mount", "type=nfs,target=/x", "nginx"}, {"service", "create", "--mount", "type=bind,source=/x", "nginx"}, {"service", "create", "--mount", "/x:/y", "nginx"},
		{"service", "create", "--mount", "target=/x,readonly=perhaps", "nginx"}, {"service", "create", "--mount", "type=tmpfs,target=/x,tmpfs-size=big", "nginx"}, {"service", "create", "--mount", "type=tmpfs,target=/x,tmpfs-mode=9", "nginx"},
		{"service", "create", "-e", "=x", "nginx"}, {"service", "create", "-l", "=x", "nginx"}, {"service", "create", "--env-file", "/nonexistent", "nginx"},
		{"service", "create", "--limit-cpu", "lots", "nginx"}, {"service", "create", "--limit-cpu", "1/2", "nginx"}, {"service", "create", "--limit-cpu", "0.0000000001", "nginx"},
		{"service", "create", "--limit-memory", "lots", "nginx"}, {"service", "create", "--limit-pids", "x", "nginx"}, {"service", "create", "--read-only=perhaps", "nginx"},
		{"service", "create", "--restart-delay", "5", "nginx"}, {"service", "create", "--restart-condition", "never", "nginx"}, {"service", "create", "--update-order", "last", "nginx"},
		{"service", "create", "--update-failure-action", "panic", "nginx"}, {"service", "create", "--update-max-failure-ratio", "half", "nginx"}, {"service", "create", "--timeout", "soon", "nginx"},
		{"service", "create", "--constraint", "disk", "nginx"}, {"service", "create", "--constraint", "node.labels.cores>=many", "nginx"}, {"service", "create", "--constraint", "node.hostname=~(", "nginx"}, {"service", "update", "--constraint-add", "node.zone==a", "web"},
		{"service", "create", "--generic-resource", "=2", "nginx"}, {"service", "create", "--generic-resource", "gpu=0", "nginx"}, {"service", "create", "--generic-resource", "gpu=u1", "nginx"}, {"service", "create", "--generic-resource", "gpu=1", "--generic-resource", "gpu=2", "nginx"}, {"service", "create", "--generic-resource", "a b=1", "nginx"},
		{"service", "create", "--placement-strategy", "random", "nginx"}, {"service", "create", "--max-unavailable", "0", "nginx"}, {"service", "create", "--max-unavailable", "101%", "nginx"}, {"service", "create", "--max-unavailable", "half", "nginx"},
		{"service", "create", "--priority", "high", "nginx"}, {"service", "create", "--priority", "-5000000", "nginx"}, {"service", "update", "--priority", "2000000", "web"},
		{"service", "create", "--mode", "replicated-job", "--schedule", "", "nginx"}, {"service", "create", "--mode", "replicated-job", "--schedule", "* * *", "nginx"}, {"service", "create", "--mode", "replicated-job", "--total", "0", "nginx"},
		{"service", "create", "--mode", "replicated-job", "--schedule", "@daily", "--timezone", "Asia/Soul", "nginx"}, {"service", "create", "--mode", "replicated-job", "--schedule", "0 0 * * funday", "nginx"},
		{"service", "update", "--generic-resource-rm", "gpu", "web"}, {"service", "update", "--placement-pref-add", "zone", "web"},
		{"service", "create", "--placement-pref", "zone", "nginx"}, {"service", "create", "--entrypoint", "sh -c 'x", "nginx"},
		{"service", "create", "--name", "a b", "nginx"}, {"service", "create", "UPPER"},
		{"service", "scale", "web"}, {"service", "scale", "web=many"}, {"service", "scale", "=3"}, {"service", "scale", "web=-1", "api=x"}, {"service", "scale", "nope=3"},
		{"service", "update", "--env-rm", "NOPE", "web"}, {"service", "update", "--label-rm", "nope", "web"}, {"service", "update", "--publish-rm", "81", "web"}, {"service", "update", "--publish-rm", "x", "web"},
		{"service", "update", "--mount-rm", "/nope", "web"}, {"service", "update", "--constraint-rm", "nope", "web"}, {"service", "update", "--placement-pref-rm", "spread=x", "web"}, {"service", "update", "--args", "'", "web"}, {"service", "update", "--image", "x", "nope"},
		{"service", "ls", "--format", "yaml"}, {"service", "ls", "--format", "{{.ID"}, {"service", "ls", "--format", "{{.Nope}}"}, {"service", "ls", "--format", "{{.ID.X}}"}, {"info", "--format", "yaml"},
		{"service", "inspect", "--pretty", "-f", "json", "web"}, {"service", "inspect", "-f", "table", "web"}, {"service", "inspect", "-f", "{{.Spec.Nope}}", "web"},
		{"--host", "tcp://10.0.0.1:2377", "info"}, {"--host", "unix://relative", "info"}, {"--host", "", "info"}, {"--host", "unix:///nonexistent/swarmd.sock", "info"},
	} {
		o := f.run(args...)
		got.WriteString("$ swarmctl " + strings.Join(args, " ") + "\n" + o.stderr + "\n")
		if o.code != exitFailed || o.stdout != "" {
			t.Errorf("%q: exit %d, stdout %q", args, o.code, o.stdout)
		}
		if strings.Count(o.stderr, "\n") != 1 && !strings.Contains(strings.Join(args, " "), "api=x") {
			t.Errorf("%q: not one line: %q", args, o.stderr)
		}
	}
	golden(t, "wrong_input", got.String())
}

func TestManagersCommand_OnAWorker_SaysWhereToRunIt(t *testing.T) {
	f := start(t, true)
	var lines []string
	for _, line := range []string{"service ls", "service create nginx", "service rm web", "service scale web=2", "node ls", "node promote n2", "node update --availability drain n2", "cluster rebalance", "service explain web", "node ps", "task ls", "join-token worker"} {
		lines = append(lines, line)
		if o := f.run(strings.Fields(line)...); o.code != exitFailed {
			t.Errorf("%s: exit %d", line, o.code)
		}
	}
	golden(t, "worker", f.play(lines...))
}

func TestServerRefuses_Anything_ItsWordsAreShown(t *testing.T) {
	f := start(t, false)
	f.local.fail = wire.Errorf(wire.CodeFailedPrecondition, "leave: this is the last manager; if that is what you want, use `swarmctl leave --force`")
	f.control.fail = wire.Errorf(wire.CodeExists, "service name \"web\": already taken by service "+webID)
	golden(t, "refused", f.play("leave", "init", "join --token x 10.0.0.1", "image load /dev/null", "service create --name web nginx:1", "version"))
}

func TestRemove_NoLeader_EachErrorNamesItsService(t *testing.T) {
	f := start(t, false)
	f.patience = time.Millisecond
	f.control.fail = wire.Errorf(wire.CodeUnavailable, "no leader answers; try again")
	want := "swarmctl: service web: no leader answers; try again\nswarmctl: service api: no leader answers; try again\n"
	if o := f.run("service", "rm", "web", "api"); o.code != exitFailed || o.stderr != want {
		t.Errorf("%+v", o)
	}
}

func TestNoSwarmd_SocketLeftBehind_SaysThatItDoesNotRun(t *testing.T) {
	f := start(t, false)
	left := filepath.Join(t.TempDir(), "left")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: left, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for _, path := range []string{left, left + "-none"} {
		o := f.run("--host", "unix://"+path, "service", "ls")
		want := "swarmctl: swarmd does not run on this host: nothing answers at unix://" + path +
			"; start it with `sudo swarmd`, or name the socket of a running one with --host or SWARM_HOST\n"
		if o.code != exitFailed || o.stderr != want {
			t.Errorf("exit %d: %s", o.code, o.stderr)
		}
	}
	t.Setenv("SWARM_HOST", "unix://"+left)
	a := &app{out: os.Stdout, err: os.Stderr}
	if a.command(); a.host != "unix://"+left {
		t.Errorf("SWARM_HOST: host is %s", a.host)
	}
}

func TestCompletion_ShellsAndNames_AreOffered(t *testing.T) {
	f := start(t, false)
	for shell, word := range map[string]string{"bash": "__start_swarmctl", "zsh": "#compdef swarmctl", "fish": "complete -c swarmctl"} {
		if o := f.run("completion", shell); o.code != 0 || !strings.Contains(o.stdout, word) {
			t.Errorf("%s: exit %d, no %q", shell, o.code, word)
		}
	}
	for line, want := range map[string]string{
		"service ps ":                               "web\twhoami:v1|api\tapi:2",
		"service ps web ":                           "api\tapi:2",
		"service update ":                           "web\twhoami:v1|api\tapi:2",
		"service update web ":                       "",
		"service scale ":                            "web=\twhoami:v1|api=\tapi:2",
		"node inspect ":                             "self\tthis manager|n2\t" + n2ID + "|n1\t" + n1ID,
		"task inspect ":                             "web.1\trunning|web.2\tpending",
		"node promote ":                             "n2\t" + n2ID,
		"node demote ":                              "n1\t" + n1ID,
		"node demote n1 ":                           "",
		"node update ":                              "self\tthis manager|n2\t" + n2ID + "|n1\t" + n1ID,
		"node update --availability ":               "active|pause|drain",
		"node update --label-add ":                  "disk=ssd",
		"node update --label-rm ":                   "disk",
		"service explain ":                          "web\twhoami:v1|api\tapi:2",
		"service explain web ":                      "",
		"cluster ":                                  "inspect\tShow the cluster's settings, and how much there is in it|rebalance\tMove tasks so that the load is more even, a few at a time|update\tChange the cluster's settings",
		"join-token ":                               "worker|manager",
		"service create --restart-condition ":       "any|on-failure|none",
		"service create --update-order ":            "stop-first|start-first",
		"service update --rollback-failure-action ": "pause|continue",
		"network inspect ":                          "back\t10.0.1.0/24|db\t10.0.2.0/24|open\t10.0.5.0/24|full|old\t10.0.3.0/24",
		"network rm back ":                          "db\t10.0.2.0/24|open\t10.0.5.0/24|full|old\t10.0.3.0/24",
		"network create --driver ":                  "overlay",
		"network create ":                           "",
		"service create --network ":                 "back\t10.0.1.0/24|db\t10.0.2.0/24|open\t10.0.5.0/24|full|old\t10.0.3.0/24",
		"service update --network-rm ":              "back\t10.0.1.0/24|db\t10.0.2.0/24|open\t10.0.5.0/24|full|old\t10.0.3.0/24",
		"service update --endpoint-mode ":           "vip|dnsrr",
		"service create --placement-strategy ":      "spread|binpack",
		"service create --constraint ":              "node.role==worker|node.role==manager|node.labels.disk==ssd|node.hostname==n2|node.hostname==n1",
		"service update --placement-pref-add ":      "spread=node.labels.disk",
		"service update web --constraint-rm ":       "node.labels.disk==ssd",
		"service update --constraint-rm ":           "",
		"service plan web --placement-strategy ":    "spread|binpack",
		"service ls --format ":                      "table|json",
		"service ls ":                               "",
		"service create --timezone ":                "",
	} {
		o := f.run(append([]string{"__complete"}, strings.Split(line, " ")...)...)
		lines := strings.Split(strings.TrimSpace(o.stdout), "\n")
		if end := lines[len(lines)-1]; end != ":4" && end != ":6" { // no names of files
			t.Errorf("%q ends with %s", line, end)
		}
		if got := strings.Join(lines[:len(lines)-1], "|"); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}
