// Command demo tells swarmd's story on one machine: three hosts made of namespaces, a cluster, a service of
// three replicas, a replica that dies and comes back. `demo down` ends it and leaves nothing behind.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/swarmd/swarmd/e2e/lab"
)

func main() {
	lab.Dispatch()
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	dir := filepath.Join(root, "build", "demo")
	switch {
	case len(args) == 1 && args[0] == "down":
		if !lab.Up(dir) {
			fmt.Println("The demo is not up.")
			return nil
		}
		if err := lab.Down(dir); err != nil {
			return err
		}
		fmt.Println("The demo is down; nothing of it is left.")
		return nil
	case len(args) == 1 && args[0] == "up":
		if os.Geteuid() != 0 {
			return errors.New("namespaces and containers need root; run make demo as root or with sudo")
		}
		if lab.Up(dir) {
			fmt.Println("A demo is up already; starting over.")
			if err := lab.Down(dir); err != nil {
				return err
			}
		}
		s := &story{root: root, dir: dir}
		if err := s.tell(); err != nil {
			return fmt.Errorf("%w (the hosts' logs are %s/node-*/swarmd.log; make demo-down cleans up)", err, dir)
		}
		return nil
	}
	return errors.New("want up or down")
}

type story struct {
	root, dir string
	lab       *lab.Lab
}

func say(format string, args ...any) { fmt.Printf("\n"+format+"\n\n", args...) }

func (s *story) tell() error {
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return err
	}
	var err error
	s.lab, err = lab.New(lab.Config{Dir: s.dir, Hosts: 3, Swarmd: filepath.Join(s.root, "bin", "swarmd"), Keep: true})
	if err != nil {
		return err
	}
	say("1. Three hosts on this machine, each with its own network, processes and disk. swarmd starts on each.")
	for _, h := range s.lab.Hosts() {
		if err := h.StartSwarmd(); err != nil {
			return err
		}
		fmt.Printf("    %s  %s\n", h.Name, h.Addr)
	}
	for _, h := range s.lab.Hosts() {
		if err := h.Ready(30 * time.Second); err != nil {
			return err
		}
	}
	for _, step := range []func() error{s.cluster, s.service, s.answers, s.heal} {
		if err := step(); err != nil {
			return err
		}
	}
	first := s.lab.Hosts()[0]
	say("That is it. The cluster goes on; look around:")
	fmt.Printf("    export SWARM_HOST=unix://%s\n    bin/swarmctl service ls\n    bin/swarmctl node ls\n    %s curl http://%s:8080\n\n    make demo-down\n",
		first.Socket(), strings.Join(s.lab.Enter(), " "), first.Addr)
	return nil
}

// ctl shows a command as it is typed on the host, runs it and shows what it prints.
func (s *story) ctl(h *lab.Host, args ...string) (string, error) {
	fmt.Printf("%s$ swarmctl %s\n", h.Name, quoted(args))
	cmd := exec.Command(filepath.Join(s.root, "bin", "swarmctl"), append([]string{"--host", "unix://" + h.Socket()}, args...)...)
	out, err := cmd.CombinedOutput()
	for line := range strings.Lines(string(out)) {
		fmt.Print("    ", line)
	}
	fmt.Println()
	if err != nil {
		return "", fmt.Errorf("swarmctl %s on %s: %w", args[0], h.Name, err)
	}
	return string(out), nil
}

func quoted(args []string) string {
	var out []string
	for _, a := range args {
		if strings.ContainsAny(a, " {}'") {
			a = "'" + a + "'"
		}
		out = append(out, a)
	}
	return strings.Join(out, " ")
}

// silent runs swarmctl for its output alone.
func (s *story) silent(h *lab.Host, args ...string) (string, error) {
	cmd := exec.Command(filepath.Join(s.root, "bin", "swarmctl"), append([]string{"--host", "unix://" + h.Socket()}, args...)...)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("swarmctl %s on %s: %s", args[0], h.Name, strings.TrimSpace(string(exit.Stderr)))
	}
	return strings.TrimSpace(string(out)), err
}

func (s *story) cluster() error {
	hosts := s.lab.Hosts()
	say("2. The first host founds a cluster, the others join it: two commands.")
	if _, err := s.ctl(hosts[0], "init", "--advertise-addr", hosts[0].Addr.String()); err != nil {
		return err
	}
	token, err := s.silent(hosts[0], "join-token", "-q", "worker")
	if err != nil {
		return err
	}
	for _, h := range hosts[1:] {
		if _, err := s.ctl(h, "join", "--token", token, hosts[0].Addr.String()+":2377"); err != nil {
			return err
		}
	}
	if err := s.until(func() error {
		out, err := s.silent(hosts[0], "node", "ls", "--format", "{{.State}}")
		if err == nil && out != "ready\nready\nready" {
			err = errors.New("not all nodes are ready")
		}
		return err
	}); err != nil {
		return err
	}
	_, err = s.ctl(hosts[0], "node", "ls")
	return err
}

func (s *story) service() error {
	hosts := s.lab.Hosts()
	say("3. Every host loads the demo image (there is no registry here), and a service of three replicas starts.")
	for _, h := range hosts {
		if _, err := s.ctl(h, "image", "load", filepath.Join(s.root, "build", "whoami.tar")); err != nil {
			return err
		}
	}
	if _, err := s.ctl(hosts[0], "service", "create", "--name", "web", "--replicas", "3", "--no-resolve-image", "--publish", "8080:80",
		"--env", "TASK={{.Task.Name}}", "--env", "NODE={{.Node.Hostname}}", "whoami:v1"); err != nil {
		return err
	}
	_, err := s.ctl(hosts[0], "service", "ps", "web")
	return err
}

func (s *story) answers() error {
	say("4. A client outside asks: any host answers, for any replica, and the replica sees the client's own address.")
	for range 2 {
		for _, h := range s.lab.Hosts() {
			if err := s.ask(h); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *story) ask(h *lab.Host) error {
	url := fmt.Sprintf("http://%s:8080/", h.Addr)
	client := &http.Client{Transport: &http.Transport{DialContext: s.lab.Dial, DisableKeepAlives: true}, Timeout: 5 * time.Second}
	r, err := client.Get(url)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		return err
	}
	var parts []string
	for line := range strings.Lines(string(body)) {
		for _, key := range []string{"Version", "Task", "Node", "RemoteAddr"} {
			if v, ok := strings.CutPrefix(strings.TrimSpace(line), key+": "); ok {
				parts = append(parts, key+" "+v)
			}
		}
	}
	fmt.Printf("client$ curl %s\n    %s\n\n", url, strings.Join(parts, ", "))
	return nil
}

func (s *story) heal() error {
	hosts := s.lab.Hosts()
	say("5. A replica dies: kill -9 on the second host.")
	before, err := s.silent(hosts[0], "service", "ps", "web", "--current", "--format", "{{.ID}} {{.Node}}")
	if err != nil {
		return err
	}
	var id string
	for line := range strings.Lines(before) {
		if f := strings.Fields(line); len(f) == 2 && f[1] == hosts[1].Name {
			id = f[0]
		}
	}
	pid, err := s.silent(hosts[0], "task", "inspect", "-f", "{{.Status.Container.Pid}}", id)
	if err != nil {
		return fmt.Errorf("find the replica on %s: %w", hosts[1].Name, err)
	}
	fmt.Printf("%s$ kill -9 %s\n\n", hosts[1].Name, pid)
	if out, code, err := hosts[1].Run("/bin/kill", "-9", pid); err != nil || code != 0 {
		return fmt.Errorf("kill: %s %w", out, err)
	}
	if err := s.until(func() error {
		now, err := s.silent(hosts[0], "service", "ps", "web", "--current", "--format", "{{.ID}} {{.State}}")
		if err == nil && (strings.Contains(now, id) || strings.Count(now, "running") != 3) {
			err = errors.New("the replica is not back")
		}
		return err
	}); err != nil {
		return err
	}
	if _, err := s.ctl(hosts[0], "service", "ps", "web"); err != nil {
		return err
	}
	return s.ask(hosts[1])
}

func (s *story) until(fn func() error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		err := fn()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}
