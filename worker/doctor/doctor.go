// Package doctor runs checks of a host side by side and tells what each has found as soon as it is known.
//
// A check that does not return in time is a finding of its own: no check keeps the others, or the one who asks, waiting.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const (
	// Time is what a check has.
	Time = 2 * time.Second
	// slack is for what a check does once its time is over.
	slack = 500 * time.Millisecond
	// Parallel bounds the checks that are made at a time.
	Parallel = 32
)

// Finding is what a check found, and what to do about it; nothing where all is well.
type Finding struct {
	Finding        swarmpb.Finding
	Detail, Advice string
}

// OK is a finding that all is well.
func OK(format string, args ...any) Finding {
	return Finding{Finding: swarmpb.Finding_FINDING_OK, Detail: fmt.Sprintf(format, args...)}
}

// Warning is a finding of something that works with a drawback, or that cannot be told.
func Warning(detail, advice string) Finding {
	return Finding{swarmpb.Finding_FINDING_WARNING, detail, advice}
}

// Problem is a finding of something that does not work.
func Problem(detail, advice string) Finding {
	return Finding{swarmpb.Finding_FINDING_PROBLEM, detail, advice}
}

// Check is one thing to look at.
type Check struct {
	// Name, for example kernel vxlan.
	Name string
	// Run looks. Its context ends when its time is over.
	Run func(ctx context.Context) Finding
}

// Run makes the checks, and tells each result, one at a time, in the order in which they come. It ends early, with an
// error, when ctx ends or tell fails.
func Run(ctx context.Context, checks []Check, tell func(*swarmpb.DoctorResponse) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan *swarmpb.DoctorResponse)
	var g errgroup.Group
	g.SetLimit(Parallel)
	go func() {
		defer close(results)
		for _, c := range checks {
			if ctx.Err() != nil {
				break
			}
			g.Go(func() error {
				found := c.make(ctx)
				select {
				case results <- &swarmpb.DoctorResponse{Check: c.Name, Finding: found.Finding, Detail: oneLine(found.Detail), Advice: oneLine(found.Advice)}:
				case <-ctx.Done():
				}
				return nil
			})
		}
		_ = g.Wait()
	}()
	var failed error
	for r := range results {
		if failed == nil && ctx.Err() == nil {
			failed = tell(r)
		}
		if failed != nil {
			cancel()
		}
	}
	return errors.Join(failed, ctx.Err())
}

// make returns what the check found, in any case within its time.
func (c Check) make(ctx context.Context) Finding {
	ctx, cancel := context.WithTimeout(ctx, Time)
	defer cancel()
	done := make(chan Finding, 1)
	go func() {
		defer func() {
			if r := recover(); r != nil {
				done <- Problem(fmt.Sprint("the check itself failed: ", r), "report this")
			}
		}()
		done <- c.Run(ctx)
	}()
	late := time.NewTimer(Time + slack)
	defer late.Stop()
	select {
	case found := <-done:
		return found
	case <-late.C:
		return Problem(fmt.Sprintf("it gave no answer within %s", Time), "look at the host's load and at the kernel's log (dmesg), then check again")
	}
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }
