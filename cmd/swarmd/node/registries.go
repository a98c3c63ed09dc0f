package node

import (
	"context"

	"github.com/swarmd/swarmd/proto/registries"
)

// watchRegistries takes over changes of registries.toml until ctx ends: for pulls here, and for the digests that this
// host's manager looks up.
func (n *Node) watchRegistries(ctx context.Context) error {
	w := registries.Watcher{
		Dir: n.cfg.ConfigDir, Plain: n.cfg.PlainRegistries, Known: n.cfg.Registries,
		Use: func(set *registries.Set) error {
			if err := set.WriteHosts(n.runtime.RegistriesDir()); err != nil {
				return n.explain(err)
			}
			n.log.Info("registries are spoken to as the changed file says", "file", registries.FileName)
			return nil
		},
		Problem: func(err error) {
			n.mu.Lock()
			n.registryProblem = err
			n.mu.Unlock()
			if err != nil {
				n.log.Warn("registries are spoken to as before: the changed file is not taken", "error", err)
			}
		},
	}
	return w.Run(ctx)
}
