package containerd

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/swarmd/swarmd/worker/runtime"
)

// invalidError is a runtime.ErrInvalid whose text is the reason alone.
type invalidError struct{ error }

func (e invalidError) Unwrap() error        { return e.error }
func (e invalidError) Is(target error) bool { return target == runtime.ErrInvalid }

// invalid makes an error that no retry can mend.
func invalid(format string, args ...any) error {
	return invalidError{fmt.Errorf(format, args...)}
}

func notFound(id string) error {
	return fmt.Errorf("container %s: %w", id, runtime.ErrNotFound)
}

// reasons are what an OCI runtime says when the spec, and not the host, is at fault, and how we say it.
var reasons = []struct {
	pattern *regexp.Regexp
	text    string
}{
	{regexp.MustCompile(`exec format error`), "exec format error: the program is built for another architecture, or is a script without its #! line"},
	{regexp.MustCompile(`exec: "?([^":]+)"?: executable file not found`), "executable $1 is not in the image's PATH"},
	{regexp.MustCompile(`executable file .?([^ '"\x60]+).? not found`), "executable $1 is not in the image's PATH"},
	{regexp.MustCompile(`exec: "?([^":]+)"?: stat [^:]*: no such file or directory`), "executable $1 is not in the image"},
	{regexp.MustCompile(`exec: "?([^":]+)"?: no such file or directory`), "executable $1 is not in the image"},
	{regexp.MustCompile(`exec: "?([^":]+)"?: permission denied`), "executable $1 may not be executed"},
	{regexp.MustCompile(`exec: "?([^":]+)"?: is a directory`), "executable $1 is a directory"},
	{regexp.MustCompile(`open executable: (.*)`), "the executable cannot be opened: $1"},
	{regexp.MustCompile(`exec user process caused: (.*)`), "the executable cannot be run: $1"},
	{regexp.MustCompile(`chdir to cwd \(\\?"([^"\\]+)\\?"\)[^:]*: (.*)`), "working directory $1: $2"},
	{regexp.MustCompile(`error mounting \\?"([^"\\]+)\\?" to rootfs at \\?"([^"\\]+)\\?": (.*)`), "mount of $1 at $2: $3"},
	{regexp.MustCompile(`minimum memory limit`), "the memory limit is below what the runtime can give"},
}

// startError says in one line why a container does not start, and whether a retry can mend it.
func startError(id string, err error) error {
	if errdefs.IsNotFound(err) && strings.Contains(err.Error(), "container") && !strings.Contains(err.Error(), "runtime") {
		return notFound(id)
	}
	return &runtime.ContainerError{Doing: "start", ID: id, Err: startReason(err)}
}

func startReason(err error) error {
	if errors.Is(err, runtime.ErrInvalid) {
		return err
	}
	text := err.Error()
	if strings.Contains(text, "cgroups in hybrid mode not supported") {
		return errors.New("crun cannot work where both cgroup versions are mounted; use --oci-runtime runc")
	}
	for _, reason := range reasons {
		if at := reason.pattern.FindStringSubmatchIndex(text); at != nil {
			said := reason.pattern.ExpandString(nil, reason.text, text, at)
			return invalid("%s", oneLine(string(said)))
		}
	}
	return errors.New(oneLine(text))
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// translate gives errors of containerd their meaning here. What it misses is not runtime.ErrNotFound, which says that
// an image or a container is not there: snapshots and content can be had again.
func translate(doing string, err error) error {
	switch {
	case err == nil:
		return nil
	case errdefs.IsInvalidArgument(err):
		return invalid("%s: %s", doing, oneLine(err.Error()))
	}
	return fmt.Errorf("%s: %w", doing, err)
}
