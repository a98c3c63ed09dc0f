package main

import (
	"errors"
	"slices"
	"strings"
)

// filter is --filter, which picks rows as docker's does: values of one key are alternatives, all keys have to match.
type filter[T any] struct {
	// keys are what a row is filtered by, and whether a value of it matches.
	keys map[string]func(row T, value string) bool
	// every names the keys of which all values have to match.
	every []string
	// want says in words what is taken; check refuses a value, and may be nil.
	want  string
	check func(key, value string) error
	byKey map[string][]string
}

func (*filter[T]) Type() string   { return "key=value" }
func (*filter[T]) String() string { return "" }

// Set reads one KEY=VALUE.
func (f *filter[T]) Set(s string) error {
	key, value, ok := strings.Cut(s, "=")
	if f.keys[key] == nil || !ok || value == "" {
		return errors.New("want " + f.want)
	}
	if f.check != nil {
		if err := f.check(key, value); err != nil {
			return err
		}
	}
	if f.byKey == nil {
		f.byKey = map[string][]string{}
	}
	f.byKey[key] = append(f.byKey[key], value)
	return nil
}

// hasLabel tells whether labels have NAME, or NAME=VALUE.
func hasLabel(labels map[string]string, want string) bool {
	name, value, valued := strings.Cut(want, "=")
	got, ok := labels[name]
	return ok && (!valued || got == value)
}

// drops says whether a row is left out.
func (f *filter[T]) drops(row T) bool {
	for key, values := range f.byKey {
		mismatch := func(v string) bool { return !f.keys[key](row, v) }
		matches := !slices.ContainsFunc(values, mismatch)
		if !slices.Contains(f.every, key) {
			matches = slices.ContainsFunc(values, func(v string) bool { return !mismatch(v) })
		}
		if !matches {
			return true
		}
	}
	return false
}
