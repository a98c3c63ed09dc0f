package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// appendTries bounds how often a client reads the journal anew after somebody else was faster.
const appendTries = 10

// appends are what clients wrote into the journal. Each reads it and writes it back with a word more, on condition
// that it is still what was read: so no acknowledged word may ever be missing.
type appends struct {
	mu   sync.Mutex
	done []appended
	// refused are words that have certainly not been written.
	refused map[string]bool
}

// appended is an acknowledged word, with when it was asked for and when it was answered.
type appended struct {
	word        string
	call, reply time.Time
}

// append writes a word, unless nobody says what became of it.
func (c *clients) append(o operation) {
	for number := range appendTries {
		service, err := c.get(o, number)
		if err != nil {
			time.Sleep(500 * time.Millisecond)
			continue
		}
		spec := swarmpb.Clone(service.GetSpec())
		spec.Labels[valueLabel] = strings.TrimSpace(spec.Labels[valueLabel] + " " + o.value)
		request := &swarmpb.UpdateServiceRequest{Service: o.service, Version: service.GetMeta().GetVersion(), Spec: spec, RequestId: swarmpb.NewID()}
		call := time.Now()
		err = c.one(o, number, func(ctx context.Context, api swarmpb.ControlServer) error {
			_, err := api.UpdateService(ctx, request)
			return err
		})
		switch {
		case err == nil:
			c.appends.add(appended{o.value, call, time.Now()})
			return
		case errors.Is(err, errDown) || definite(err):
		default:
			return
		}
	}
	c.appends.refuse(o.value)
}

func (a *appends) add(word appended) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.done = append(a.done, word)
}

func (a *appends) refuse(word string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.refused == nil {
		a.refused = map[string]bool{}
	}
	a.refused[word] = true
}

// check compares the journal with what was acknowledged: each word once, and the later after the earlier.
func (a *appends) check(journal string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	words := strings.Fields(journal)
	for i, word := range words {
		if slices.Contains(words[:i], word) {
			return fmt.Errorf("%q is there twice: %s", word, journal)
		}
		if a.refused[word] {
			return fmt.Errorf("%q was refused and is there: %s", word, journal)
		}
	}
	for _, one := range a.done {
		at := slices.Index(words, one.word)
		if at < 0 {
			return fmt.Errorf("%q was acknowledged and is lost: %s", one.word, journal)
		}
		for _, other := range a.done {
			if before := slices.Index(words, other.word); other.call.After(one.reply) && 0 <= before && before < at {
				return fmt.Errorf("%q was written after %q and stands before it: %s", other.word, one.word, journal)
			}
		}
	}
	return nil
}

func TestAppends(t *testing.T) {
	at := func(seconds int) time.Time { return time.Unix(int64(seconds), 0) }
	a := &appends{}
	a.add(appended{"a", at(1), at(2)})
	a.add(appended{"b", at(3), at(5)})
	a.add(appended{"c", at(4), at(6)})
	a.refuse("d")
	for journal, want := range map[string]string{
		"a b c": "", "a c b": "", "a x b c": "", // x: nobody knew
		"a b":     `"c" was acknowledged and is lost`,
		"b a c":   `"b" was written after "a" and stands before it`,
		"a b b c": `"b" is there twice`,
		"a b c d": `"d" was refused and is there`,
	} {
		if err := a.check(journal); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("check(%q) = %v, want %q", journal, err, want)
		}
	}
}
