package reconcile

import (
	"container/heap"
	"time"
)

// queue is first in, first out. Each id is in it at most once (item.queued), so it is bounded by what exists.
type queue struct {
	ids  []ID
	head int
}

func (q *queue) len() int { return len(q.ids) - q.head }

func (q *queue) push(id ID) { q.ids = append(q.ids, id) }

func (q *queue) pop() ID {
	id := q.ids[q.head]
	q.ids[q.head] = ID{}
	q.head++
	if q.head == len(q.ids) {
		*q = queue{}
	} else if q.head > 1024 && q.head > len(q.ids)/2 {
		// What was taken out is given back even when the queue never runs empty.
		*q = queue{ids: append([]ID(nil), q.ids[q.head:]...)}
	}
	return id
}

// alarmClock holds times at which ids are to be looked at, earliest first. It keeps stale entries until their
// time: the item knows which one counts.
type alarmClock struct{ heap entries }

type entry struct {
	at time.Time
	id ID
}

func (c *alarmClock) set(at time.Time, id ID) { heap.Push(&c.heap, entry{at, id}) }

func (c *alarmClock) next() (time.Time, bool) {
	if len(c.heap) == 0 {
		return time.Time{}, false
	}
	return c.heap[0].at, true
}

// due takes out the earliest entry when its time has come.
func (c *alarmClock) due(now time.Time) (ID, time.Time, bool) {
	if len(c.heap) == 0 || c.heap[0].at.After(now) {
		return ID{}, time.Time{}, false
	}
	e := heap.Pop(&c.heap).(entry)
	return e.id, e.at, true
}

type entries []entry

func (h entries) Len() int           { return len(h) }
func (h entries) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h entries) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *entries) Push(x any)        { *h = append(*h, x.(entry)) }
func (h *entries) Pop() any {
	old := *h
	e := old[len(old)-1]
	*h = old[:len(old)-1]
	return e
}
