// Command swarmd is the daemon of a host: manager, worker and containerd in one binary.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/swarmd/swarmd/cmd/swarmd/node"
	"github.com/swarmd/swarmd/proto/registries"
	"github.com/swarmd/swarmd/worker/runtime/containerd/embedded"
)

// version is set by the build.
var version = "dev"

func main() {
	if embedded.Dispatch() {
		return
	}
	if err := command().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "swarmd:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	o := &options{}
	cmd := &cobra.Command{
		Use:   "swarmd",
		Short: "The swarmd daemon: one per host",
		Long: `swarmd runs on every host of a cluster. Started for the first time it belongs to no cluster and
waits on its local socket for "swarmctl init" or "swarmctl join".

It carries its own containerd, which it starts as a child process; containerd and the containers
go on when swarmd stops or is upgraded. Only runc (or crun) has to be installed besides.

Every flag can also be set in the environment (--data-dir as SWARMD_DATA_DIR) and in the
configuration file (data-dir = "/srv/swarmd"). A flag beats the environment, which beats the file.

How registries are spoken to stands in registries.toml of the configuration directory:

  [[registry]]
  host = "registry.local:5000"         # as in the images' references
  ca = "registry-ca.pem"               # who signed its certificate; or plain_http = true, or insecure = true
  mirrors = ["mirror.local:5000"]      # asked first; a mirror may have an entry of its own

A change of that file counts within seconds, without a restart. With a mistake in it swarmd does not start; while it
runs, a mistake changes nothing and "swarmctl info" tells its line.`,
		Example: `  swarmd
  swarmd --data-dir /srv/swarmd --oci-runtime crun
  SWARMD_LOG_FORMAT=json swarmd`,
		Args:          cobra.NoArgs,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.resolve(cmd.Flags()); err != nil {
				return err
			}
			return run(cmd.Context(), o)
		},
	}
	o.define(cmd.Flags())
	cmd.SetVersionTemplate("swarmd {{.Version}}\n")
	return cmd
}

func run(ctx context.Context, o *options) error {
	if os.Geteuid() != 0 {
		return errors.New("swarmd makes namespaces and containers and must run as root; start it with sudo or as a system service")
	}
	logger, err := o.logger(os.Stderr)
	if err != nil {
		return err
	}
	slog.SetDefault(logger)
	routeLogrus(logrus.StandardLogger(), logger)
	known, err := registries.Load(o.configDir, o.insecureRegistries)
	if err != nil {
		return err
	}
	if err := protect("/proc/self/oom_score_adj"); err != nil {
		logger.Warn("not protected from the kernel's OOM killer", "error", err)
	}
	unlock, err := lock(o.dataDir)
	if err != nil {
		return err
	}
	defer unlock()
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	labels, err := labelsOf(o.engineLabels)
	if err != nil {
		return err
	}
	n, err := node.New(node.Config{
		DataDir: o.dataDir, RunDir: o.runDir, Containerd: o.containerd, OCIRuntime: o.ociRuntime, SharedShim: o.sharedShim, ListenAddr: o.listenAddr, GossipAddr: o.gossipAddr,
		CgroupParent: o.cgroupParent, Registries: known, ConfigDir: o.configDir, PlainRegistries: o.insecureRegistries,
		Version: version, Logger: logger, Generic: o.generic.resources(), EngineLabels: labels, CDIDirs: o.cdiDirs,
	})
	if err != nil {
		return err
	}
	return n.Run(ctx)
}

// lock refuses a second daemon on the same data directory.
func lock(dir string) (func(), error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	f, err := os.OpenFile(dir+"/lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("data directory %s is used by another swarmd; stop that one, or choose another directory with --data-dir", dir)
	}
	return func() { _ = f.Close() }, nil
}
