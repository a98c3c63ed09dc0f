// Package containerd runs containers through containerd: our own child (package embedded) or an existing one
// by its address, in the namespace "swarmd".
//
// It promises that a container outlives the process that made it, that its exit is reported once and the same
// to all, also when it happened while nobody watched, and that neither an image nor a user can make a
// container that reads differently to containerd than to us: an image's labels are never copied and reserved
// ones refused. It alone writes Config.Dir's containers, volumes, logs, registries and containerd-owner, and everything of the
// namespace in containerd.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/containerd/containerd/v2/pkg/dialer"

	"github.com/swarmd/swarmd/proto/registries"
	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/logger/bin"
)

// Namespace of everything of ours in containerd.
const Namespace = "swarmd"

// Defaults of Config.
const (
	DefaultCgroupParent = "/swarmd"
	DefaultPidsLimit    = 4096
	DefaultLogSize      = 10 << 20
	DefaultLogFiles     = 3
	// DefaultSilence is how long a registry may say nothing before a local image is used instead.
	DefaultSilence = 3 * time.Second
	// DefaultSweepEvery is between two looks for what a crash has left.
	DefaultSweepEvery = 10 * time.Minute
)

// Config of a Runtime. Paths are absolute.
type Config struct {
	// Address of containerd's socket.
	Address string
	// Shared containerd, which others use too: one whose namespace belongs to another Dir is refused by Run.
	Shared bool
	// Dir is persistent (the data directory): volumes, logs, files of containers.
	Dir string
	// RunDir is transient: state of the OCI runtime.
	RunDir string
	// OCIRuntime is runc (default), crun, auto or the path of one.
	OCIRuntime string
	// SharedShim has up to 16 containers share one shim, which takes them down with it when it dies.
	SharedShim bool
	// CgroupParent is the cgroup below which each container gets its own.
	CgroupParent string
	// PidsLimit of a container that asks for none; -1 = unlimited.
	PidsLimit int64
	// InsecureRegistries (host[:port]) are spoken to in plain HTTP.
	InsecureRegistries []string
	// Registries says how others are spoken to; nil = all over TLS.
	Registries *registries.Set
	// Snapshotter; empty = overlayfs, or native where it is not supported.
	Snapshotter string
	// ExitDir holds exits that containerd would have lost (embedded.Config.ExitDir); empty = none.
	ExitDir string
	// LogSize bytes a file and LogFiles files a container.
	LogSize  int64
	LogFiles int
	// Devices makes the host's devices available in containers that ask for some; nil = there are none.
	Devices Devices
	// Silence of a registry before a local image is good enough.
	Silence time.Duration
	// SweepEvery is between two looks for what a crash has left.
	SweepEvery time.Duration
	Logger     *slog.Logger
}

// Devices of the host, as package devices has them.
type Devices interface {
	// Inject edits the spec of a container so that it has the devices, which are named in full. What goes wrong no other
	// try can mend.
	Inject(spec *specs.Spec, names []string) error
}

// Runtime runs containers. See runtime.Runtime for its methods.
type Runtime struct {
	Config
	log    *slog.Logger
	client *client.Client
	oci    OCIRuntime
	host   host
	logger string // path of the logger binary, which is also the init

	ctx    context.Context // ends with Run; of every monitor
	cancel context.CancelFunc
	tasks  sync.WaitGroup // monitors

	ids     keyed // one verb at a time per container
	volumes keyed
	images  imageCache
	pulls   pulls
	groups  *groups
	execs   execs

	uncollected chan struct{} // a collection is wanted; see collectSoon

	mu          sync.Mutex
	monitors    map[string]*monitor
	snapshotter string // once known
	transfer    *bool  // whether the transfer service is there, once known
	seen        map[string]seen
}

var _ runtime.Runtime = (*Runtime)(nil)

// New checks the host and connects lazily: containerd may come up later.
func New(c Config) (*Runtime, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.CgroupParent == "" {
		c.CgroupParent = DefaultCgroupParent
	}
	if c.PidsLimit == 0 {
		c.PidsLimit = DefaultPidsLimit
	}
	if c.LogSize == 0 {
		c.LogSize = DefaultLogSize
	}
	if c.LogFiles == 0 {
		c.LogFiles = DefaultLogFiles
	}
	if c.Silence == 0 {
		c.Silence = DefaultSilence
	}
	if c.SweepEvery == 0 {
		c.SweepEvery = DefaultSweepEvery
	}
	for name, path := range map[string]string{"data directory": c.Dir, "run directory": c.RunDir, "cgroup parent": c.CgroupParent} {
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("%s %q is not an absolute path", name, path)
		}
	}
	r := &Runtime{
		Config: c, log: c.Logger, snapshotter: c.Snapshotter,
		host: probeHost(), groups: newGroups(), monitors: map[string]*monitor{}, seen: map[string]seen{},
		uncollected: make(chan struct{}, 1),
	}
	// Of processes that a former one ran in containers: whatever is left of them does without.
	if err := os.RemoveAll(r.execsDir()); err != nil {
		return nil, fmt.Errorf("make directory of containers: %w", err)
	}
	for _, dir := range []string{r.containersDir(), r.volumesDir(), r.inheritedDir(), r.logsDir(), r.registriesDir(), c.RunDir, r.execsDir()} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fmt.Errorf("make directory of containers: %w", err)
		}
	}
	known, err := c.Registries.With(c.InsecureRegistries)
	if err != nil {
		return nil, err
	}
	if err := known.WriteHosts(r.registriesDir()); err != nil {
		return nil, err
	}
	if err := r.clearViews(); err != nil {
		return nil, err
	}
	if r.logger, err = bin.Extract(filepath.Join(c.Dir, "bin")); err != nil {
		return nil, err
	}
	var why string
	if r.oci, why, err = chooseOCI(c.OCIRuntime, filepath.Join(c.Dir, "bin"), r.logger); err != nil {
		return nil, err
	}
	if why != "" {
		r.log.Info("chose the OCI runtime", "runtime", r.oci.String(), "because", why)
	}
	if r.client, err = connect(c.Address); err != nil {
		return nil, fmt.Errorf("connect to containerd at %s: %w", c.Address, err)
	}
	r.ctx, r.cancel = context.WithCancel(namespaces.WithNamespace(context.Background(), Namespace))
	return r, nil
}

func connect(address string) (*client.Client, error) {
	// A containerd that was away is found again within a second.
	retry := backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}
	return client.New(address, client.WithDefaultNamespace(Namespace), client.WithDialOpts([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: retry, MinConnectTimeout: time.Second}),
		grpc.WithContextDialer(dialer.ContextDialer),
	}))
}

// Run watches containers until ctx ends and lets go of containerd then. Containers go on.
func (r *Runtime) Run(ctx context.Context) error {
	var refused error
	if r.Shared {
		refused = r.claim(ctx)
	}
	if refused == nil {
		r.work(ctx)
	}
	r.mu.Lock() // watch looks at the context under it, so that no monitor begins beside the wait
	r.cancel()
	r.mu.Unlock()
	r.tasks.Wait()
	if err := r.client.Close(); err != nil {
		return errors.Join(refused, fmt.Errorf("close connection to containerd: %w", err))
	}
	return refused
}

// work watches containers until ctx ends.
func (r *Runtime) work(ctx context.Context) {
	watch, stop := context.WithCancel(r.ctx)
	defer stop()
	var watching sync.WaitGroup
	watching.Go(func() { r.watchEvents(watch) })
	watching.Go(func() { r.sweep(watch) })
	watching.Go(func() { r.collect(watch) })
	<-ctx.Done()
	stop()
	watching.Wait()
}

// Info describes containerd and the OCI runtime.
func (r *Runtime) Info(ctx context.Context) (runtime.Info, error) {
	version, err := r.client.Version(ctx)
	if err != nil {
		return runtime.Info{}, fmt.Errorf("ask containerd at %s for its version: %w", r.Address, err)
	}
	return runtime.Info{Version: version.Version, OCIRuntime: r.oci.String(), Address: r.Address}, nil
}

func (r *Runtime) containersDir() string         { return filepath.Join(r.Dir, "containers") }
func (r *Runtime) containerDir(id string) string { return filepath.Join(r.containersDir(), id) }
func (r *Runtime) volumesDir() string            { return filepath.Join(r.Dir, "volumes") }
func (r *Runtime) inheritedDir() string          { return filepath.Join(r.Dir, "inherited") }
func (r *Runtime) logsDir() string               { return filepath.Join(r.Dir, "logs") }
func (r *Runtime) registriesDir() string         { return filepath.Join(r.Dir, "registries") }

// RegistriesDir is where it says, in the form of containerd, how registries are spoken to.
func (r *Runtime) RegistriesDir() string { return r.registriesDir() }

// LogDir is where the logger writes a container's current.log and its rotated predecessors.
func (r *Runtime) LogDir(id string) string { return filepath.Join(r.logsDir(), id) }

// keyed is a lock a key.
type keyed struct {
	mu    sync.Mutex
	locks map[string]*keyedLock
}

type keyedLock struct {
	sync.Mutex
	users int
}

// lock returns what unlocks.
func (k *keyed) lock(key string) func() {
	k.mu.Lock()
	if k.locks == nil {
		k.locks = map[string]*keyedLock{}
	}
	l := k.locks[key]
	if l == nil {
		l = &keyedLock{}
		k.locks[key] = l
	}
	l.users++
	k.mu.Unlock()
	l.Lock()
	return func() {
		l.Unlock()
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.locks, key)
		}
	}
}
