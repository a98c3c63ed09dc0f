package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"runtime/metrics"
	"runtime/pprof"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/swarmd/swarmd/manager"
	"github.com/swarmd/swarmd/manager/dispatcher"
	"github.com/swarmd/swarmd/manager/replica"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// slowFrom nodes on, all times are longer: here a few cores carry all managers and all workers, and 20,000 beats a second, each a
// message there and back under TLS, would leave them time for little else.
const slowFrom = 4000

// slowLimits have as many beats a second whatever the number of nodes.
func slowLimits(nodes int) dispatcher.Limits {
	beat := time.Duration(nodes) * 400 * time.Microsecond
	return dispatcher.Limits{BeatInterval: beat, Lease: 5 * beat, ReconnectLease: 30 * time.Second, ReportInterval: time.Second}
}

var slowTuning = replica.Tuning{
	HeartbeatTimeout: 1500 * time.Millisecond, ElectionTimeout: 1500 * time.Millisecond, LeaderLease: 1500 * time.Millisecond, WriteDeadline: 10 * time.Second,
	ProposeTimeout: 30 * time.Second,
}

// runManager is the role of a manager: its directory, its socket, of another manager address and token, both empty for the first, and how many workers there will be.
func runManager(ctx context.Context, out *json.Encoder, in *json.Decoder) error {
	if len(os.Args) < 7 {
		return errors.New("usage: manager DIR SOCKET MANAGER TOKEN NODES")
	}
	dir, sock, other, token := os.Args[2], os.Args[3], os.Args[4], os.Args[5]
	nodes, err := strconv.Atoi(os.Args[6])
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	said := started{}
	var founding *manager.Founding
	var id wire.Identity
	if other == "" {
		spec := &swarmpb.ClusterSpec{}
		spec.SetDefaults()
		if founding, err = manager.Foundation(spec, time.Now()); err != nil {
			return err
		}
		id, said.Worker, said.Manager = founding.Identity, founding.Tokens.GetWorker(), founding.Tokens.GetManager()
	} else if id, err = wire.Join(ctx, wire.JoinConfig{Managers: []string{other}, Token: token}); err != nil {
		return err
	}
	creds := wire.NewCredentials()
	creds.Set(id)
	listener, err := wire.Listen("127.0.0.1:0", creds)
	if err != nil {
		return err
	}
	said.Address = listener.Addr().String()
	cfg := manager.Config{Dir: dir, Credentials: creds, Address: said.Address, Raft: listener.Raft(), Logger: slog.Default()}
	if nodes >= slowFrom {
		cfg.Limits, cfg.Tuning = slowLimits(nodes), slowTuning
	}
	m, err := manager.New(cfg)
	if err != nil {
		return err
	}
	if founding != nil {
		if err := m.Bootstrap(); err != nil {
			return err
		}
	}
	server, local := wire.NewServer(wire.ServerConfig{Logger: slog.Default()}), wire.NewServer(wire.ServerConfig{Local: true, Logger: slog.Default()})
	m.Register(server)
	swarmpb.RegisterControlServer(local, m.Control())
	unix, err := wire.ListenLocal(sock)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return listener.Run(ctx) })
	g.Go(func() error { return server.Serve(listener.GRPC()) })
	g.Go(func() error { return local.Serve(unix) })
	g.Go(func() error { return m.Run(ctx) })
	if founding != nil {
		if err := m.Found(ctx, founding); err != nil {
			return err
		}
		other = said.Address
	}
	// A manager is a node too; of this one nobody wants tasks.
	self := &worker{id: id, creds: creds, managers: []string{other}, listen: said.Address, none: "it is a manager of the simulation"}
	g.Go(func() error { return self.run(ctx) })
	g.Go(func() error {
		if err := out.Encode(said); err != nil {
			return err
		}
		return answer(in, out, func(word string) (any, error) {
			switch word {
			case "heap":
				return liveHeap(), nil
			case "leads":
				return m.Leader() == id.NodeID, nil
			}
			return nil, fmt.Errorf("%q is not known", word)
		})
	})
	return g.Wait()
}

// answer answers the parent's words until it has gone.
func answer(in *json.Decoder, out *json.Encoder, to func(word string) (any, error)) error {
	for {
		var word string
		if err := in.Decode(&word); err != nil {
			if errors.Is(err, io.EOF) {
				os.Exit(0)
			}
			return err
		}
		var said any
		var err error
		if path, ok := strings.CutPrefix(word, "profile "); ok {
			said, err = true, profile(path)
		} else {
			said, err = to(word)
		}
		if err != nil {
			return err
		}
		if err := out.Encode(said); err != nil {
			return err
		}
	}
}

// profile ends the CPU profile that is being taken, and begins another one in a file, if one is named.
func profile(path string) error {
	pprof.StopCPUProfile()
	if path == "" {
		return nil
	}
	f, err := os.Create(path) // ends with the process
	if err != nil {
		return err
	}
	return pprof.StartCPUProfile(f)
}

// liveHeap is what a collection leaves, in bytes.
func liveHeap() int64 {
	runtime.GC()
	runtime.GC()
	samples := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(samples)
	return int64(samples[0].Value.Uint64())
}
