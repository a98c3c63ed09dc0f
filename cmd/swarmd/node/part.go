package node

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/swarmd/swarmd/manager"
	"github.com/swarmd/swarmd/proto/wire"
)

// part is one life of this host's manager, which starts and stops beside the worker: the cluster port, the server on
// it, and the manager itself.
type part struct {
	listener *wire.Listener
	server   *grpc.Server
	manager  *manager.Manager
	// over is closed when the manager has stopped: leadership is with another one, calls are answered no more.
	over chan struct{}
}

// openPart takes the port and opens what the manager has on disk. Either run or close follows.
func (n *Node) openPart(creds *wire.Credentials, cfg manager.Config) (*part, error) {
	p := &part{over: make(chan struct{})}
	var err error
	if p.listener, err = wire.Listen(n.cfg.ListenAddr, creds); err != nil {
		return nil, err
	}
	cfg.Raft = p.listener.Raft()
	if p.manager, err = manager.New(cfg); err != nil {
		return nil, errors.Join(err, p.listener.Close())
	}
	p.server = wire.NewServer(wire.ServerConfig{Logger: n.log})
	p.manager.Register(p.server)
	if err := wire.CheckAccess(p.server); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// close gives up what openPart opened, in place of run.
func (p *part) close() error {
	if p == nil {
		return nil
	}
	return errors.Join(p.listener.Close(), p.manager.Close())
}

// run serves until ctx ends, and returns nil when everything has stopped; an error is of a part that ended by itself.
// A leader hands leadership over before, and the port answers until then.
func (p *part) run(ctx context.Context) error {
	port, closePort := context.WithCancel(context.WithoutCancel(ctx))
	defer closePort()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return unlessEnded(port, "cluster port", p.listener.Run(port)) })
	g.Go(func() error { return unlessEnded(port, "cluster port", p.server.Serve(p.listener.GRPC())) })
	g.Go(func() error {
		err := unlessEnded(ctx, "manager", p.manager.Run(ctx))
		close(p.over)
		closePort()
		stopServer(p.server)
		return err
	})
	return g.Wait()
}

// unlessEnded is the error of something that should have gone on until ctx ended.
func unlessEnded(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	if err == nil {
		return errors.New(what + " ended by itself")
	}
	return err
}

// stopped says whether the manager has stopped answering.
func (p *part) stopped() bool {
	select {
	case <-p.over:
		return true
	default:
		return false
	}
}

// backoff is the pause between tries that fail: twice as long each time, from min to max.
type backoff struct{ min, max, pause time.Duration }

func (b *backoff) next() time.Duration {
	b.pause = min(max(b.min, 2*b.pause), b.max)
	return b.pause
}

func (b *backoff) reset() { b.pause = 0 }
