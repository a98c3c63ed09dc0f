package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// client is a connection to the local socket. Its errors are wire's.
type client struct {
	conn *grpc.ClientConn
	swarmpb.ControlClient
	local swarmpb.LocalClient
}

// call is the body of a command that talks to swarmd.
func (a *app) call(do func(ctx context.Context, c *client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		return a.with(func(c *client) error { return do(cmd.Context(), c, args) })
	}
}

// with lends do a client.
func (a *app) with(do func(c *client) error) error {
	path, ok := strings.CutPrefix(a.host, "unix://")
	if !ok || !strings.HasPrefix(path, "/") {
		return fmt.Errorf("--host %q (or SWARM_HOST): want unix:///PATH, the socket of the swarmd on this host", a.host)
	}
	conn, err := wire.DialLocal(path)
	if err != nil {
		return err
	}
	defer conn.Close()
	err = do(&client{conn: conn, ControlClient: swarmpb.NewControlClient(&link{conn: conn, app: a}), local: swarmpb.NewLocalClient(conn)})
	if errors.Is(err, wire.ErrUnavailable) {
		return absent(path, err)
	}
	return err
}

// absent tells a swarmd that does not run from one that cannot answer.
func absent(path string, err error) error {
	conn, dialErr := net.Dial("unix", path)
	if dialErr == nil {
		conn.Close()
		return err
	}
	if errors.Is(dialErr, fs.ErrNotExist) || errors.Is(dialErr, syscall.ECONNREFUSED) {
		return fmt.Errorf("swarmd does not run on this host: nothing answers at unix://%s; start it with `sudo swarmd`, "+
			"or name the socket of a running one with --host or SWARM_HOST", path)
	}
	return err
}

// each does all and returns all errors: one name that is wrong does not spare the others.
func each(args []string, do func(string) error) error {
	var errs []error
	told := map[string]bool{}
	for _, arg := range args {
		// What is wrong with the host, and not with an argument, is said once.
		if err := do(arg); err != nil && !told[err.Error()] {
			told[err.Error()] = true
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (a *app) warn(warnings []string) {
	for _, w := range warnings {
		_, _ = fmt.Fprintln(a.err, "warning:", clean(w))
	}
}
