package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/swarmd/swarmd/e2e/measure"
	"github.com/swarmd/swarmd/worker/runtime/containerd"

	// Options of the runtime are decoded by their type's name.
	_ "github.com/containerd/containerd/api/types/runc/options"
)

const (
	// rawNamespace keeps the loop's containers out of the product's sight.
	rawNamespace = "bench"
	rawAtOnce    = 4
	shimRuntime  = "io.containerd.runc.v2"
)

// rawLoop is what a program does that knows containerd alone: the same daemon, shim, runc, logger and
// specification as the product's, an empty network namespace a container.
type rawLoop struct {
	client  *client.Client
	image   client.Image
	spec    []byte
	options any
	logger  string
	parent  string         // of the containers' cgroups
	signal  syscall.Signal // that ends them
	made    []func() error
}

// newRawLoop takes the container of a running task as its template, which must live as long as the loop.
func newRawLoop(ctx context.Context, h *measure.Host, template, archive string) (*rawLoop, error) {
	info, err := containerdAddress(ctx, h)
	if err != nil {
		return nil, err
	}
	c, err := client.New(info, client.WithDefaultRuntime(shimRuntime))
	if err != nil {
		return nil, err
	}
	l := &rawLoop{client: c, signal: unix.SIGKILL}
	if err := l.prepare(ctx, h, template, archive); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("prepare the raw loop: %w", err)
	}
	return l, nil
}

func (l *rawLoop) prepare(ctx context.Context, h *measure.Host, template, archive string) error {
	record, err := l.client.ContainerService().Get(namespaces.WithNamespace(ctx, containerd.Namespace), template)
	if err != nil {
		return err
	}
	if l.options, err = typeurl.UnmarshalAny(record.Runtime.Options); err != nil {
		return err
	}
	var spec specs.Spec
	if err := json.Unmarshal(record.Spec.GetValue(), &spec); err != nil {
		return err
	}
	for i := range spec.Linux.Namespaces {
		if ns := &spec.Linux.Namespaces[i]; ns.Type == specs.NetworkNamespace {
			ns.Path = ""
		}
	}
	delete(spec.Annotations, "io.containerd.runc.v2.group") // a shim each
	l.parent = filepath.Dir(spec.Linux.CgroupsPath)
	if l.spec, err = json.Marshal(&spec); err != nil {
		return err
	}
	loggers, err := filepath.Glob(filepath.Join(h.Dir, "data", "bin", "logger-*"))
	if err != nil || len(loggers) != 1 {
		return fmt.Errorf("find the logger: %v, %v", loggers, err)
	}
	l.logger = filepath.Join("/var/lib/swarmd/bin", filepath.Base(loggers[0]))
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	ctx = namespaces.WithNamespace(ctx, rawNamespace)
	if _, err := l.client.Import(ctx, f); err != nil {
		return err
	}
	if l.image, err = l.client.GetImage(ctx, "docker.io/library/"+measure.Image); err != nil {
		return err
	}
	return l.image.Unpack(ctx, record.Snapshotter)
}

// containerdAddress is the path, outside the host, of its containerd's socket.
func containerdAddress(ctx context.Context, h *measure.Host) (string, error) {
	inside, err := h.ContainerdAddress(ctx)
	if err != nil {
		return "", err
	}
	rel, err := filepath.Rel("/run/swarmd", inside)
	return filepath.Join(h.Dir, "run", rel), err
}

// startAll starts n containers and returns how long that took.
func (l *rawLoop) startAll(ctx context.Context, round, n int) (time.Duration, error) {
	ctx = namespaces.WithNamespace(ctx, rawNamespace)
	l.made = make([]func() error, n)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(rawAtOnce)
	begin := time.Now()
	for i := range n {
		g.Go(func() error {
			id := fmt.Sprintf("raw-%d-%s", round, strconv.Itoa(i))
			remove, err := l.start(ctx, id)
			l.made[i] = remove
			if err != nil {
				return fmt.Errorf("start %s: %w", id, err)
			}
			return nil
		})
	}
	err := g.Wait()
	return time.Since(begin), err
}

func (l *rawLoop) start(ctx context.Context, id string) (func() error, error) {
	var spec specs.Spec
	if err := json.Unmarshal(l.spec, &spec); err != nil {
		return nil, err
	}
	spec.Linux.CgroupsPath = filepath.Join(l.parent, id)
	c, err := l.client.NewContainer(ctx, id, client.WithNewSnapshot(id, l.image), client.WithSpec(&spec), client.WithRuntime(shimRuntime, l.options))
	if err != nil {
		return nil, err
	}
	// As a path on the host; "/logs" there is the product's, where this container's has a name of its own.
	task, err := c.NewTask(ctx, cio.BinaryIO(l.logger, map[string]string{"dir": filepath.Join("/var/lib/swarmd/raw-logs", id)}))
	if err != nil {
		return nil, err
	}
	exited, err := task.Wait(namespaces.WithNamespace(context.Background(), rawNamespace))
	if err != nil {
		return nil, err
	}
	return func() error {
		ctx := namespaces.WithNamespace(context.Background(), rawNamespace)
		if err := task.Kill(ctx, l.signal); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		<-exited
		if _, err := task.Delete(ctx); err != nil {
			return err
		}
		return c.Delete(ctx, client.WithSnapshotCleanup)
	}, task.Start(ctx)
}

// removeAll ends and removes what startAll made and returns how long that took.
func (l *rawLoop) removeAll() (time.Duration, error) {
	var g errgroup.Group
	g.SetLimit(rawAtOnce)
	begin := time.Now()
	for _, remove := range l.made {
		if remove != nil {
			g.Go(remove)
		}
	}
	l.made = nil
	err := g.Wait()
	return time.Since(begin), err
}

func (l *rawLoop) close() error { return l.client.Close() }
