package swarmpb

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/types/known/durationpb"
)

// FieldError says what is wrong with one field of what a user wrote, and what to do.
type FieldError struct {
	// Field is named as the user knows it, with its value where there are several: publish 8080, mount /data.
	Field   string
	Problem string
	Fix     string
}

func (e *FieldError) Error() string {
	return e.Field + ": " + e.Problem + "; " + e.Fix
}

// problems gathers the errors of one object in the order of its fields.
type problems struct {
	list []error
}

// add takes the field, what is wrong with it and what to do.
func (p *problems) add(field, problem, fix string) {
	p.list = append(p.list, &FieldError{Field: field, Problem: problem, Fix: fix})
}

func (p *problems) addf(field, fix, problem string, args ...any) {
	p.add(field, fmt.Sprintf(problem, args...), fix)
}

// err is nil without problems, else all of them joined: errors.As finds the first, Unwrap() []error all.
func (p *problems) err() error {
	return errors.Join(p.list...)
}

// duration checks a time span that may be unset.
func (p *problems) duration(field string, d *durationpb.Duration) {
	switch {
	case d == nil:
	case d.CheckValid() != nil:
		p.add(field, "not a duration", "use one such as 10s")
	case d.AsDuration() < 0:
		p.addf(field, "use 0s or more", "%s is negative", d.AsDuration())
	}
}

// known checks an enum's value against those that this version knows.
func known[E ~int32](p *problems, field string, value E, names map[int32]string) {
	if _, ok := names[int32(value)]; !ok {
		p.addf(field, "upgrade the managers, or choose another", "value %d is not known to this version", int32(value))
	}
}
