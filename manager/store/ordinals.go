package store

import (
	"fmt"
	"iter"
	"slices"
)

// maxChunk is the most ordinals in a chunk.
const maxChunk = 128

// ordinals is a sequence of tasks by their ordinals, held by an index that is copied for each version. It has next to
// nothing for the collector to follow, and the common changes copy next to nothing: what is added last goes behind
// what earlier versions see of the same memory, and what is taken from the front stays there for them. For that,
// versions must follow one another: only the newest may be changed, and memory behind the end of a chunk is
// written once.
type ordinals struct {
	// made is the index of the View that owns chunks, though not what is in them.
	made uint64
	// shared: another store may write behind the ends of the chunks too.
	shared bool
	count  int
	chunks [][]uint32
}

func (o *ordinals) own(made uint64) {
	if o.made != made || o.shared {
		o.chunks, o.made = slices.Clone(o.chunks), made
	}
	if o.shared {
		for i, chunk := range o.chunks {
			o.chunks[i] = slices.Clip(chunk)
		}
		o.shared = false
	}
}

// all walks the sequence.
func (o *ordinals) all() iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		for _, chunk := range o.chunks {
			for _, ordinal := range chunk {
				if !yield(ordinal) {
					return
				}
			}
		}
	}
}

// push adds an ordinal at the end.
func (o *ordinals) push(made uint64, ordinal uint32) {
	o.own(made)
	o.count++
	last := len(o.chunks) - 1
	if last < 0 || len(o.chunks[last]) >= maxChunk {
		o.chunks = append(o.chunks, []uint32{ordinal})
		return
	}
	o.chunks[last] = append(o.chunks[last], ordinal)
}

// pop takes the first ordinal; there must be one.
func (o *ordinals) pop(made uint64) uint32 {
	ordinal := o.chunks[0][0]
	o.removeAt(made, 0, 0)
	return ordinal
}

// insert adds an ordinal where compare, which orders the sequence, says: it is negative for those before it.
func (o *ordinals) insert(made uint64, ordinal uint32, compare func(uint32) int) {
	at, i, _ := o.search(compare)
	if at == len(o.chunks) {
		o.push(made, ordinal)
		return
	}
	o.own(made)
	o.count++
	chunk := make([]uint32, 0, len(o.chunks[at])+1)
	chunk = append(append(append(chunk, o.chunks[at][:i]...), ordinal), o.chunks[at][i:]...)
	if len(chunk) <= maxChunk {
		o.chunks[at] = chunk
		return
	}
	half := len(chunk) / 2
	o.chunks[at] = chunk[:half:half]
	o.chunks = slices.Insert(o.chunks, at+1, chunk[half:])
}

// search is where the first ordinal stands for which compare is not negative, past the last chunk when there is
// none, and whether compare is zero there.
func (o *ordinals) search(compare func(uint32) int) (chunk, at int, found bool) {
	chunk, _ = slices.BinarySearchFunc(o.chunks, compare, func(c []uint32, compare func(uint32) int) int {
		return compare(c[len(c)-1])
	})
	if chunk == len(o.chunks) {
		return chunk, 0, false
	}
	at, found = slices.BinarySearchFunc(o.chunks[chunk], compare, func(ordinal uint32, compare func(uint32) int) int {
		return compare(ordinal)
	})
	return chunk, at, found
}

// remove takes an ordinal out of a sequence that compare orders.
func (o *ordinals) remove(made uint64, ordinal uint32, compare func(uint32) int) {
	if o.count > 0 && o.chunks[0][0] == ordinal {
		o.removeAt(made, 0, 0)
		return
	}
	if chunk, at, found := o.search(compare); found {
		o.removeAt(made, chunk, at)
	}
}

// discard takes an ordinal out of a sequence that has no order.
func (o *ordinals) discard(made uint64, ordinal uint32) {
	for i, chunk := range o.chunks {
		if at := slices.Index(chunk, ordinal); at >= 0 {
			o.removeAt(made, i, at)
			return
		}
	}
}

func (o *ordinals) removeAt(made uint64, i, at int) {
	o.own(made)
	o.count--
	chunk := o.chunks[i]
	switch {
	case len(chunk) == 1:
		o.chunks = slices.Delete(o.chunks, i, i+1)
	case at == 0:
		o.chunks[i] = chunk[1:]
	default:
		// A copy even for the last one: its place may not be written again.
		o.chunks[i] = append(append(make([]uint32, 0, len(chunk)), chunk[:at]...), chunk[at+1:]...)
	}
}

// check is for Verify: the count is right, and no chunk is empty or too long.
func (o *ordinals) check() error {
	total := 0
	for _, chunk := range o.chunks {
		if len(chunk) == 0 || len(chunk) > maxChunk {
			return fmt.Errorf("a chunk holds %d ordinals", len(chunk))
		}
		total += len(chunk)
	}
	if total != o.count {
		return fmt.Errorf("%d ordinals are counted, %d are there", o.count, total)
	}
	return nil
}
