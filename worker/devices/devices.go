// Package devices finds the devices of the host that CDI spec files describe (Container Device Interface), tells the kinds
// and names of them, and makes them available in containers.
//
// It promises that a spec file that cannot be read takes nothing away but its own devices, and that what it tells is what
// the files said at the last Look. It reads the directories that it is given, and writes nothing.
package devices

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const (
	// all stands for the other devices of its kind together; it is none itself.
	all = "all"
	// maxProblems bounds the lines of Problems.
	maxProblems = 16
	// maxFiles bounds the spec files that are looked at for changes, over all directories.
	maxFiles = 1_000
)

// DefaultDirs are where the CDI specification has spec files; of the same device the later directory's counts.
var DefaultDirs = []string{"/etc/cdi", "/var/run/cdi"}

// Set is the devices of a host. It is safe for concurrent use.
type Set struct {
	dirs  []string
	log   *slog.Logger
	cache *cdi.Cache

	mu        sync.Mutex
	files     []file // that were read
	changed   bool   // since Look was asked last
	resources []*swarmpb.GenericResource
	problems  []string
}

// file tells whether a spec file is another one.
type file struct {
	path  string
	size  int64
	mtime int64
}

// New looks for devices in the directories, which need not be there.
func New(dirs []string, log *slog.Logger) (*Set, error) {
	cache, err := cdi.NewCache(cdi.WithAutoRefresh(false), cdi.WithSpecDirs(dirs...))
	if err != nil {
		return nil, fmt.Errorf("read CDI spec files: %w", err)
	}
	s := &Set{dirs: dirs, log: log, cache: cache}
	s.files = s.list()
	s.read()
	return s, nil
}

// Look reads the spec files anew if one has changed, come or gone, and tells whether the devices or the problems are others than
// when it was last called.
func (s *Set) Look() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.look()
	changed := s.changed
	s.changed = false
	return changed
}

func (s *Set) look() {
	files := s.list()
	if slices.Equal(files, s.files) {
		return
	}
	s.files = files
	_ = s.cache.Refresh() // what is wrong is in GetErrors, by file
	before, problems := s.resources, s.problems
	s.read()
	for _, problem := range s.problems {
		if !slices.Contains(problems, problem) {
			s.log.Warn("devices are not as described", "problem", problem)
		}
	}
	s.changed = s.changed || !slices.Equal(problems, s.problems) || !reflect.DeepEqual(before, s.resources)
}

// Resources are the devices by kind (vendor.com/class), each kind's in order. They are not to be changed.
func (s *Set) Resources() []*swarmpb.GenericResource {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.resources
}

// Problems are what is wrong with spec files, one line each.
func (s *Set) Problems() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.problems
}

// Inject makes devices (vendor.com/class=name) available in the container that the spec describes. What goes wrong no
// other try can mend.
func (s *Set) Inject(spec *specs.Spec, names []string) error {
	s.mu.Lock()
	s.look()
	s.mu.Unlock()
	if gone, err := s.cache.InjectDevices(spec, names...); len(gone) > 0 {
		return fmt.Errorf("device %s is not there any more", strings.Join(gone, ", "))
	} else if err != nil {
		return fmt.Errorf("device %s: %w", strings.Join(names, ", "), err)
	}
	return nil
}

// Name is how a device is called in full.
func Name(kind, name string) string { return kind + "=" + name }

// list is the spec files as they are now. What cannot be looked at is told when it is read.
func (s *Set) list() []file {
	var out []file
	for _, dir := range s.dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, entry := range entries {
			path := filepath.Join(dir, entry.Name())
			if ext := filepath.Ext(path); ext != ".json" && ext != ".yaml" || len(out) >= maxFiles {
				continue
			}
			if info, err := os.Stat(path); err == nil {
				out = append(out, file{path: path, size: info.Size(), mtime: info.ModTime().UnixNano()})
			}
		}
	}
	return out
}

// read takes over what the cache has.
func (s *Set) read() {
	s.resources, s.problems = nil, nil
	for path, errs := range s.cache.GetErrors() {
		s.problems = append(s.problems, fmt.Sprintf("CDI spec %s: %s", path, strings.Join(strings.Fields(errors.Join(errs...).Error()), " ")))
	}
	byKind := map[string][]*cdi.Device{}
	instances := 0
	for _, qualified := range s.cache.ListDevices() {
		vendor, class, name, err := parser.ParseQualifiedName(qualified)
		if err != nil || name == all {
			continue
		}
		kind := vendor + "/" + class
		switch device := s.cache.GetDevice(qualified); {
		case device == nil:
		case !swarmpb.ValidGenericKind(kind) || !swarmpb.ValidGenericInstance(name):
			s.problems = append(s.problems, fmt.Sprintf("device %s: its name is too long or odd to be handed out", qualified))
		case instances == swarmpb.MaxGenericInstances || byKind[kind] == nil && len(byKind) == swarmpb.MaxGenericKinds:
			s.problems = append(s.problems, fmt.Sprintf("device %s is left out: a node has at most %d, of %d kinds", qualified, swarmpb.MaxGenericInstances, swarmpb.MaxGenericKinds))
		default:
			byKind[kind] = append(byKind[kind], device)
			instances++
		}
	}
	for kind, devices := range byKind {
		s.resources = append(s.resources, &swarmpb.GenericResource{Kind: kind, Instances: distinct(devices)})
	}
	slices.SortFunc(s.resources, func(a, b *swarmpb.GenericResource) int { return cmp.Compare(a.GetKind(), b.GetKind()) })
	slices.Sort(s.problems)
	if more := len(s.problems) - maxProblems; more > 0 {
		s.problems = append(s.problems[:maxProblems-1], fmt.Sprintf("devices: %d more problems", more+1))
	}
}

// distinct names devices in order, each once: some generators describe the same device under its number and its serial
// number, and it must not be handed out twice. The shortest name stays.
func distinct(devices []*cdi.Device) []string {
	slices.SortFunc(devices, func(a, b *cdi.Device) int {
		return cmp.Or(cmp.Compare(len(a.Name), len(b.Name)), cmp.Compare(a.Name, b.Name))
	})
	var out []string
	for i, d := range devices {
		same := func(other *cdi.Device) bool {
			return len(d.ContainerEdits.DeviceNodes) > 0 && reflect.DeepEqual(d.ContainerEdits, other.ContainerEdits)
		}
		if !slices.ContainsFunc(devices[:i], same) {
			out = append(out, d.Name)
		}
	}
	slices.Sort(out)
	return out
}
