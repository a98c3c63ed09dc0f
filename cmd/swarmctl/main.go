// Command swarmctl is the tool of a swarmd cluster's users. Each file holds one noun, or one thing that the nouns
// share: output.go what listings look like, inspect.go what an object looks like, progress.go when a wait is over.
//
// What it promises: results go to standard output, all else to standard error. It exits with 0 when what was asked for
// has been done or waits for a person, with 1 and a reason when it has not, with 2 when a plan does not come to an end,
// with 124 when --timeout was over before, and with 130 when it was interrupted. JSON has lowerCamelCase
// fields that are always there, numbers as numbers, times as RFC 3339 and durations as text.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// version is set by the build.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the process at once
	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr, now: time.Now, ticks: ticks, patience: patience, author: author()}
	if fd := int(os.Stdout.Fd()); term.IsTerminal(fd) {
		a.terminal, a.colours = true, os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
		if width, height, err := term.GetSize(fd); err == nil {
			a.width, a.height = width, height
		}
	}
	os.Exit(a.main(ctx, os.Args[1:]))
}

// ticks is the clock of a wait, and what stops it.
func ticks(d time.Duration) (<-chan time.Time, func()) {
	t := time.NewTicker(d)
	return t.C, t.Stop
}

// app is one run of the tool.
type app struct {
	in       io.Reader
	out, err io.Writer
	// terminal: out can be drawn on; its size in characters, 0 = not known.
	terminal, colours bool
	width, height     int
	now               func() time.Time
	ticks             func(time.Duration) (<-chan time.Time, func())
	host              string
	// author is who the history names for what this run asks for.
	author string
	// patience is how long a call is tried again while there is no leader.
	patience time.Duration
	// stale: answers may come from this manager's own copy. A run warns of one of them.
	stale  bool
	warned sync.Once
}

// reading marks a command that only reads.
func (a *app) reading(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&a.stale, "stale", false, "show this manager's own copy without asking the leader; it may be out of date")
}

// errInterrupted is what a wait ends with on Ctrl-C.
var errInterrupted = errors.New("interrupted")

// Exit codes. Those of timeout and interruption are what timeout(1) and shells use.
const (
	exitFailed      = 1
	exitNoEnd       = 2 // a plan does not come to an end
	exitTimeout     = 124
	exitInterrupted = 130
)

// coded is an error with an exit code of its own.
type coded struct {
	error
	code int
}

func (c coded) Unwrap() error { return c.error }

// timedOut marks the error of a wait whose --timeout was over.
func timedOut(err error) error { return coded{err, exitTimeout} }

func (a *app) main(ctx context.Context, args []string) int {
	cmd := a.command()
	cmd.SetArgs(args)
	if slices.Contains(args, cobra.ShellCompRequestCmd) || slices.Contains(args, cobra.ShellCompNoDescRequestCmd) {
		completeNoFiles(cmd)
	}
	cmd.SetOut(a.out)
	cmd.SetErr(a.err)
	err := cmd.ExecuteContext(ctx)
	code := exitFailed
	if own := (coded{}); errors.As(err, &own) {
		code = own.code
	}
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil:
		code = exitInterrupted
		if !errors.Is(err, errInterrupted) {
			err = errInterrupted // what a call says of its canceled context helps nobody
		}
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		_, _ = fmt.Fprintln(a.err, "swarmctl:", clean(line))
	}
	return code
}

const defaultHost = "unix:///run/swarmd/swarmd.sock"

func (a *app) command() *cobra.Command {
	cmd := group("swarmctl", "Run containers on a cluster of your own hosts",
		a.initCommand(), a.joinCommand(), a.joinTokenCommand(), a.leaveCommand(), a.infoCommand(), a.versionCommand(),
		a.clusterCommand(), a.nodeCommand(), a.serviceCommand(), a.networkCommand(), a.taskCommand(), a.imageCommand(), a.loginCommand(), a.logoutCommand())
	cmd.Long = `swarmctl talks to the swarmd of this host over its local socket. Commands about the cluster, services,
networks, tasks and nodes need a manager; init, join, leave, info, image and "node doctor" are about this host.`
	cmd.Example = `  swarmctl init --advertise-addr 192.168.1.10
  swarmctl join --token SWMTKN-1-... 192.168.1.10:2377
  swarmctl node promote node-2 node-3
  swarmctl network create back
  swarmctl service create --name web --replicas 3 --network back -p 8080:80 nginx:alpine
  swarmctl service ps web`
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.SetFlagErrorFunc(flagError)
	cmd.SetHelpCommand(helpCommand())
	host := os.Getenv("SWARM_HOST")
	if host == "" {
		host = defaultHost
	}
	cmd.PersistentFlags().StringVar(&a.host, "host", host, "socket of swarmd, `unix:///PATH` (also SWARM_HOST)")
	return cmd
}
