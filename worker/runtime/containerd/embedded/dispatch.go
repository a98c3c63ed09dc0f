// Package embedded carries containerd and its runc shim inside our own binary, and keeps one containerd of
// ours running as a child process.
//
// It promises that containerd and the containers outlive the process that started them: the child has its
// own session, a later process adopts it through its socket, and only StopChild ends it. It alone writes the
// child's configuration, pid file, log and records of exits, all below Config.Root and Config.State.
package embedded

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task"
	"github.com/containerd/containerd/v2/cmd/containerd/command"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
)

const (
	daemonName = "containerd"
	shimName   = "containerd-shim-runc-v2"
	shimID     = "io.containerd.runc.v2"
)

// Dispatch runs containerd or its shim when this process was started under one of their names, and then
// reports true: the caller returns from main at once. A main that embeds containerd calls it first.
func Dispatch() bool {
	switch {
	case filepath.Base(os.Args[0]) == daemonName:
		if err := command.App().Run(context.Background(), os.Args); err != nil {
			fmt.Fprintln(os.Stderr, "containerd:", err)
			os.Exit(1)
		}
		return true
	case isShim(os.Args):
		runShim()
		return true
	}
	return false
}

// isShim knows the shim by the name of its symlink and, because it starts its second self through
// os.Executable and so loses that name, by its first flag.
func isShim(args []string) bool {
	return filepath.Base(args[0]) == shimName || len(args) > 1 && args[1] == "-namespace"
}

// runShim registers the task service alone: the shim starts every registered plugin, which in this binary
// would be all of containerd.
func runShim() {
	registry.Reset()
	registry.Register(&plugin.Registration{
		Type:     plugins.TTRPCPlugin,
		ID:       "task",
		Requires: []plugin.Type{plugins.EventPlugin, plugins.InternalPlugin},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			publisher, err := ic.GetByID(plugins.EventPlugin, "publisher")
			if err != nil {
				return nil, err
			}
			stop, err := ic.GetByID(plugins.InternalPlugin, "shutdown")
			if err != nil {
				return nil, err
			}
			return task.NewTaskService(ic.Context, publisher.(shim.Publisher), stop.(shutdown.Service))
		},
	})
	shim.RunShim(context.Background(), manager.NewShimManager(shimID))
}
