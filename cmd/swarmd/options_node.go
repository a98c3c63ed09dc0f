package main

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// genericFlag reads KIND=N and KIND=NAME,NAME; what has no = goes on with the names of the kind before, so that several
// kinds may be in one text, as they are in a configuration file.
type genericFlag struct {
	kinds map[string]*swarmpb.GenericResource
	texts []string
}

func (g *genericFlag) String() string { return strings.Join(g.texts, ",") }

// Type is what the help shows.
func (g *genericFlag) Type() string { return "KIND=N|NAMES" }

func (g *genericFlag) Set(text string) error {
	var kind string
	values := map[string][]string{}
	for _, part := range strings.Split(text, ",") {
		value := strings.TrimSpace(part)
		if name, rest, ok := strings.Cut(value, "="); ok {
			kind, value = strings.TrimSpace(name), strings.TrimSpace(rest)
		} else if kind == "" {
			return fmt.Errorf("%q: want KIND=NUMBER or KIND=NAME,NAME, for example gpu=2 or gpu=card0,card1", text)
		}
		values[kind] = append(values[kind], value)
	}
	for _, kind := range slices.Sorted(maps.Keys(values)) {
		if err := g.add(kind, values[kind]); err != nil {
			return err
		}
	}
	g.texts = append(g.texts, text)
	return nil
}

// add takes the values of a kind: one number, or names, to which later ones are added.
func (g *genericFlag) add(kind string, values []string) error {
	switch {
	case strings.Contains(kind, "/"):
		return fmt.Errorf("%s: kinds with a slash are those of devices, which CDI spec files describe (--cdi-spec-dir); take another name", kind)
	case !swarmpb.ValidGenericKind(kind):
		return fmt.Errorf("%q is no kind: use letters, digits, dots, dashes and underscores", kind)
	}
	if g.kinds == nil {
		g.kinds = map[string]*swarmpb.GenericResource{}
	}
	before := g.kinds[kind]
	if n, err := strconv.ParseInt(values[0], 10, 64); err == nil && len(values) == 1 {
		switch {
		case before != nil:
			return fmt.Errorf("%s is given twice: add the counts up, or give names alone", kind)
		case n < 1 || n > swarmpb.MaxGenericCount:
			return fmt.Errorf("%s=%d: use 1 to %d", kind, n, swarmpb.MaxGenericCount)
		}
		g.kinds[kind] = &swarmpb.GenericResource{Kind: kind, Count: n}
		return g.bounded()
	}
	if before.GetCount() > 0 {
		return fmt.Errorf("%s is given both a count and names: give one of them", kind)
	}
	names := slices.Clone(before.GetInstances())
	for _, name := range values {
		if !swarmpb.ValidGenericInstance(name) {
			return fmt.Errorf("%s: %q is no name of one: use letters, digits, dots, colons, dashes and underscores", kind, name)
		}
		if slices.Contains(names, name) {
			return fmt.Errorf("%s: %s is named twice", kind, name)
		}
		names = append(names, name)
	}
	slices.Sort(names)
	g.kinds[kind] = &swarmpb.GenericResource{Kind: kind, Instances: names}
	return g.bounded()
}

func (g *genericFlag) bounded() error {
	instances := 0
	for _, r := range g.kinds {
		instances += len(r.GetInstances())
	}
	switch {
	case len(g.kinds) > swarmpb.MaxGenericKinds:
		return fmt.Errorf("use at most %d kinds", swarmpb.MaxGenericKinds)
	case instances > swarmpb.MaxGenericInstances:
		return fmt.Errorf("use at most %d names", swarmpb.MaxGenericInstances)
	}
	return nil
}

// resources are those given, by kind.
func (g *genericFlag) resources() []*swarmpb.GenericResource {
	var out []*swarmpb.GenericResource
	for _, kind := range slices.Sorted(maps.Keys(g.kinds)) {
		out = append(out, g.kinds[kind])
	}
	return out
}

// labelsOf reads engine labels, KEY=VALUE each; a KEY alone has the empty value.
func labelsOf(given []string) (map[string]string, error) {
	var errs []error
	labels := map[string]string{}
	for _, text := range given {
		key, value, _ := strings.Cut(text, "=")
		_, twice := labels[key]
		switch {
		case key == "" || !swarmpb.ValidEngineLabel(key, value):
			errs = append(errs, fmt.Errorf("--engine-label %.80q: want KEY=VALUE, printable text of at most %d bytes each", text, swarmpb.MaxEngineLabelBytes))
		case twice:
			errs = append(errs, fmt.Errorf("--engine-label %q is given twice", key))
		}
		labels[key] = value
	}
	if len(labels) > swarmpb.MaxEngineLabels {
		errs = append(errs, fmt.Errorf("--engine-label: %d are given; use at most %d", len(labels), swarmpb.MaxEngineLabels))
	}
	return labels, errors.Join(errs...)
}

// checkNode checks what the node is to say of itself.
func (o *options) checkNode() error {
	_, err := labelsOf(o.engineLabels)
	errs := []error{err}
	for _, dir := range o.cdiDirs {
		if !filepath.IsAbs(dir) {
			errs = append(errs, fmt.Errorf("--cdi-spec-dir %q: want an absolute path", dir))
		}
	}
	return errors.Join(errs...)
}
