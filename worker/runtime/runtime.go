// Package runtime is the surface between the agent and whatever runs containers.
//
// A container is named by its task's ID, so two containers of one task cannot exist. Every method is
// idempotent where that makes sense: making what is there, or removing what is not, is no error. A Runtime
// keeps its containers when the process that uses it dies; the next one finds them with List.
package runtime

import (
	"context"
	"errors"
	"io"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Errors that the agent branches on; a Runtime wraps them.
var (
	ErrNotFound = errors.New("not found")
	ErrInUse    = errors.New("in use")
	// ErrInvalid marks what no retry can mend: a bad image, a missing entrypoint, an unknown user.
	ErrInvalid = errors.New("invalid")
	// ErrNotRunning is of a container that is there and has no process.
	ErrNotRunning = errors.New("not running")
)

// ContainerError is an error about one container. Who shows it beside that container's task needs only Err.
type ContainerError struct {
	Doing string // make, start
	ID    string
	Err   error
}

func (e *ContainerError) Error() string {
	return e.Doing + " container " + e.ID + ": " + e.Err.Error()
}

func (e *ContainerError) Unwrap() error { return e.Err }

// PullError is why an image cannot be had, in one line for a user; Err is one of the above.
type PullError struct {
	Reason string
	Err    error
}

func (e *PullError) Error() string { return e.Reason }

func (e *PullError) Unwrap() error { return e.Err }

// State of a container.
type State int

// States of a container, in order.
const (
	Created State = iota + 1
	Running
	Stopped
)

// Image in the local store.
type Image struct {
	Name      string // full reference, docker.io/library/nginx:alpine
	Digest    string // of the manifest or index, sha256:...
	Size      int64  // bytes, unpacked content in the store
	CreatedAt time.Time
	// Loaded out of an archive: no registry may have it.
	Loaded bool
}

// Spec is everything that a container is made from.
type Spec struct {
	ID        string // the task's
	Image     string // as the user wrote it
	Digest    string // runs by digest where it is known
	Container *swarmpb.ContainerSpec
	Resources *swarmpb.ResourceRequirements
	// Labels and Env that the cluster sets; a user's cannot override them.
	Labels map[string]string
	Env    []string
	// Hostname in the container.
	Hostname string
	// Namespace is the path of the network namespace; empty = an own, empty one.
	Namespace string
	// Devices of the host, in full: example.com/gpu=0.
	Devices []string
	// Inherits: its anonymous volumes are those that TakeVolumes gave to ID, as far as there are such for its targets.
	Inherits bool
	// ResolvConf, Hosts: contents of /etc/resolv.conf and /etc/hosts; empty = the runtime's defaults.
	ResolvConf, Hosts string
}

// Container is what the runtime knows of one.
type Container struct {
	ID     string
	State  State
	Pid    uint32
	Labels map[string]string
	Exit   *Exit // when Stopped
	Digest string
}

// Exit is how a container ended.
type Exit struct {
	Code      uint32 // 128 + signal when killed by one
	At        time.Time
	OOMKilled bool
	// Unknown: it ended while nobody watched and its code could not be read.
	Unknown bool
	// Reason in one line, where more is known than the code says; else empty.
	Reason string
}

// ExecSpec is a process to run in a container beside its own: as the container's user, with its capabilities and limits.
type ExecSpec struct {
	Args []string // the first is looked up in the container's PATH
	Env  []string // NAME=VALUE, which replace the container's of the same name
	Dir  string   // empty = the container's
	// Limit is how many bytes of output are kept, the first that come; 0 = DefaultExecOutput. More is read and dropped.
	Limit int
}

// DefaultExecOutput is what is kept of a process's output, in bytes.
const DefaultExecOutput = 4 << 10

// ExecResult is what came of a process.
type ExecResult struct {
	Code uint32 // 128 + signal when killed by one
	// Output of both streams, as it came; Truncated: there was more.
	Output    []byte
	Truncated bool
}

// Healthcheck is an image's own, as Docker has it; zero fields are unset.
type Healthcheck struct {
	// Test is NONE, CMD and the arguments, or CMD-SHELL and a line for /bin/sh -c.
	Test                                          []string
	Interval, Timeout, StartPeriod, StartInterval time.Duration
	Retries                                       int
}

// Info describes the runtime.
type Info struct {
	Version    string // of containerd
	OCIRuntime string // runc 1.1.5
	Address    string
}

// PullProgress is told a few times a second during a pull.
type PullProgress struct {
	Done, Total int64 // bytes
}

// PullRequest names an image to have in the local store.
type PullRequest struct {
	Image  string
	Digest string // empty = whatever the tag means now
	// Policy says when the registry is asked; unspecified: when there is no image of the digest, or no digest.
	Policy swarmpb.PullPolicy
	// Auth is shown to its own registry alone, and kept nowhere; may be nil.
	Auth *swarmpb.RegistryAuth
	// Progress may be nil.
	Progress func(PullProgress)
}

// Runtime runs containers. All methods are safe for concurrent use.
type Runtime interface {
	Info(ctx context.Context) (Info, error)

	// Pull fetches and unpacks. With no answer from the registry, an image that was loaded locally under the
	// name (and the digest, if one is given) is good enough. It fails with a PullError where the registry refuses.
	Pull(ctx context.Context, req PullRequest) (Image, error)
	// Import reads a docker or OCI archive, plain or gzip.
	Import(ctx context.Context, archive io.Reader) ([]Image, error)
	Images(ctx context.Context) ([]Image, error)
	// RemoveImage: ErrInUse while a container uses it, unless forced.
	RemoveImage(ctx context.Context, name string, force bool) ([]string, error)

	// Healthcheck is that of a local image, found as Create finds it; nil when it has none.
	Healthcheck(ctx context.Context, image, digest string) (*Healthcheck, error)

	// Create makes the container, not its process. It replaces a half-made one.
	Create(ctx context.Context, spec Spec) error
	// Start starts its process and returns its pid.
	Start(ctx context.Context, id string) (uint32, error)
	// Wait returns when the process has ended; at once when it already has.
	Wait(ctx context.Context, id string) (Exit, error)
	// Kill sends a signal by name (SIGTERM) to its first process.
	Kill(ctx context.Context, id, signal string) error
	// Exec runs a process in a running container to its end; ErrNotRunning without one, ErrInvalid when it cannot be run
	// there. It is killed when ctx ends or the container is removed, and then the result has what it wrote until then beside
	// the error. What it leaves running is killed in any case.
	Exec(ctx context.Context, id string, spec ExecSpec) (ExecResult, error)
	// TakeVolumes gives the anonymous volumes of a container that has no process any more, or of one that is removed and had
	// been given its own, to another one, which need not be there. ErrInUse while from runs. What to was given before stays.
	TakeVolumes(ctx context.Context, from, to string) error
	// RemoveVolumes removes those that a container was given by TakeVolumes: Remove leaves them to who comes after it.
	RemoveVolumes(ctx context.Context, id string) error
	// Remove kills what is left and removes container, snapshot and its own anonymous volumes. Logs stay.
	Remove(ctx context.Context, id string) error
	// RemoveLogs removes what Remove leaves.
	RemoveLogs(ctx context.Context, id string) error
	// Logged is the IDs that have logs, or volumes that they were given, also of containers that are gone.
	Logged(ctx context.Context) ([]string, error)
	// List is everything of ours, also what a former process made.
	List(ctx context.Context) ([]Container, error)
	// Stop ends a container: its stop signal, the grace period, SIGKILL.
	Stop(ctx context.Context, id, signal string, grace time.Duration) (Exit, error)
}
