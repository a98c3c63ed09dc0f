// Package history records what clients of a cluster asked and saw, and says whether that can have been one register a key,
// written and read one operation at a time (linearizability), with porcupine.
package history

import (
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// History of the clients of one cluster. Safe for concurrent use.
type History struct {
	begin time.Time

	mu         sync.Mutex
	operations []porcupine.Operation
}

// New begins a history now, by the clock of package time.
func New() *History { return &History{begin: time.Now()} }

// Outcome of a write.
type Outcome int

const (
	// Done: it was acknowledged.
	Done Outcome = iota
	// Refused: it certainly has had and will have no effect.
	Refused
	// Unknown: it may take effect at any time from its call on, or never.
	Unknown
)

type input struct {
	key, value string
	write      bool
}

// Write records a write of value to key that do makes.
func (h *History) Write(client int, key, value string, do func() Outcome) Outcome {
	call := h.now()
	outcome := do()
	end := h.now()
	switch outcome {
	case Refused:
		return outcome
	case Unknown:
		end = math.MaxInt64
	}
	h.add(client, input{key, value, true}, "", call, end)
	return outcome
}

// Read records a linearizable read of key that do makes; one that fails says nothing and is not kept. A key never written has
// the value "".
func (h *History) Read(client int, key string, do func() (value string, err error)) (string, error) {
	call := h.now()
	value, err := do()
	if err != nil {
		return "", err
	}
	h.add(client, input{key: key}, value, call, h.now())
	return value, nil
}

func (h *History) now() int64 { return int64(time.Since(h.begin)) }

func (h *History) add(client int, in input, out string, call, end int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.operations = append(h.operations, porcupine.Operation{ClientId: client, Input: in, Output: out, Call: call, Return: end})
}

// Len is the number of operations that were kept.
func (h *History) Len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.operations)
}

// register is the model: one value, "" at first.
var register = porcupine.Model{
	Partition: func(all []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[string][]porcupine.Operation{}
		var keys []string
		for _, o := range all {
			key := o.Input.(input).key
			if byKey[key] == nil {
				keys = append(keys, key)
			}
			byKey[key] = append(byKey[key], o)
		}
		var out [][]porcupine.Operation
		for _, key := range keys {
			out = append(out, byKey[key])
		}
		return out
	},
	Init: func() any { return "" },
	Step: func(state, in, out any) (bool, any) {
		if i := in.(input); i.write {
			return true, i.value
		}
		return state == out, state
	},
	Equal: func(a, b any) bool { return a == b },
	DescribeOperation: func(in, out any) string {
		if i := in.(input); i.write {
			return fmt.Sprintf("write %s = %s", i.key, i.value)
		}
		return fmt.Sprintf("read %s = %v", in.(input).key, out)
	},
}

// Check is an error unless the history is linearizable. Where that is not known within the limit, it says so.
func (h *History) Check(limit time.Duration) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	result, info := porcupine.CheckOperationsVerbose(register, h.operations, limit)
	switch result {
	case porcupine.Ok:
		return nil
	case porcupine.Unknown:
		return fmt.Errorf("the check of %d operations did not end within %s", len(h.operations), limit)
	}
	text := ""
	for i, longest := range info.PartialLinearizations() {
		text += fmt.Sprintf("\nkey %d: of its operations at most %d fit in one order", i, len(longestOf(longest)))
	}
	return fmt.Errorf("the history of %d operations is not linearizable%s", len(h.operations), text)
}

func longestOf(all [][]int) (longest []int) {
	for _, l := range all {
		if len(l) > len(longest) {
			longest = l
		}
	}
	return longest
}
