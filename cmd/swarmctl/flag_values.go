package main

import (
	"errors"
	"strconv"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/protobuf/types/known/durationpb"
)

// byDefault is the value of a flag that unsets what a service said before, so that the default holds again.
const byDefault = "default"

// spanValue is a duration, or "default".
type spanValue struct {
	*durationpb.Duration // nil = default
}

func (v *spanValue) String() string { return span(v.Duration) }
func (*spanValue) Type() string     { return "duration" }

// Set reads the flag.
func (v *spanValue) Set(s string) error {
	v.Duration = nil
	if s == byDefault {
		return nil
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return errors.New("want a duration with its unit, such as 500ms, 10s or 2m, or default")
	}
	if d < 0 {
		return errors.New("a time cannot be negative; want 0s or more, or default")
	}
	v.Duration = durationpb.New(d)
	return nil
}

// positive is the duration, where 0 means the default too.
func (v *spanValue) positive() *durationpb.Duration {
	if v.Duration.AsDuration() == 0 {
		return nil
	}
	return v.Duration
}

// numberValue is a whole number, or "default".
type numberValue struct {
	n *uint64 // nil = default
}

func (v *numberValue) String() string {
	if v.n == nil {
		return ""
	}
	return strconv.FormatUint(*v.n, 10)
}
func (*numberValue) Type() string { return "uint64" }

// Set reads the flag.
func (v *numberValue) Set(s string) error {
	v.n = nil
	if s == byDefault {
		return nil
	}
	n, err := strconv.ParseUint(s, 10, 64)
	v.n = &n
	return err
}

// boundValue is a number with a fraction, or "default", which means none.
type boundValue struct {
	n *float64
}

func (v *boundValue) String() string {
	if v.n == nil {
		return ""
	}
	return strconv.FormatFloat(*v.n, 'g', -1, 64)
}
func (*boundValue) Type() string { return "float64" }

// Set reads the flag.
func (v *boundValue) Set(s string) error {
	v.n = nil
	if s == byDefault {
		return nil
	}
	n, err := strconv.ParseFloat(s, 64)
	v.n = &n
	return err
}

// valueFlag adds a flag of one of these types, with the default that its help shows.
func valueFlag(f *pflag.FlagSet, v pflag.Value, name, shown, usage string) {
	f.Var(v, name, usage)
	f.Lookup(name).DefValue = shown
}

// enumFlag reads the word of a flag that stands for one of a few things; "default" is none of them.
func enumFlag[E any](name, word string, parse func(string) (E, error)) (E, error) {
	var unset E
	if word == byDefault {
		return unset, nil
	}
	e, err := parse(word)
	if err != nil {
		return unset, flagged(name, err)
	}
	return e, nil
}
