package relay

import (
	"bytes"
	"container/heap"
	"context"

	"golang.org/x/sync/errgroup"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// merge sends the logs of the sources by their lines' times, to their end. Of each it holds one frame.
func (c *call) merge(ctx context.Context, sources []*source) error {
	g, ctx := errgroup.WithContext(ctx)
	heads := make([]*head, len(sources))
	for i, src := range sources {
		h := &head{number: src.info.GetNumber(), frames: make(chan []byte)}
		heads[i] = h
		g.Go(func() error {
			defer close(h.frames)
			return c.run(ctx, src, func(ctx context.Context, frame *swarmpb.LogFrame) error {
				select {
				case h.frames <- frame.GetRecords():
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			})
		})
	}
	g.Go(func() error { return c.mergeHeads(ctx, heads) })
	return g.Wait()
}

// head is the earliest unsent lines of a source.
type head struct {
	number uint32
	frames chan []byte
	lines  []byte
}

// fill waits for lines; false at the end.
func (h *head) fill(ctx context.Context) bool {
	for len(h.lines) == 0 {
		select {
		case lines, ok := <-h.frames:
			if !ok {
				return false
			}
			h.lines = lines
		case <-ctx.Done():
			return false
		}
	}
	return true
}

func (h *head) stamp() []byte { return h.lines[:stampLen] }

// byTime is a heap of heads that have lines.
type byTime []*head

func (b byTime) Len() int { return len(b) }
func (b byTime) Less(i, j int) bool {
	if c := bytes.Compare(b[i].stamp(), b[j].stamp()); c != 0 {
		return c < 0
	}
	return b[i].number < b[j].number
}
func (b byTime) Swap(i, j int) { b[i], b[j] = b[j], b[i] }
func (b *byTime) Push(x any)   { *b = append(*b, x.(*head)) }
func (b *byTime) Pop() any {
	last := (*b)[len(*b)-1]
	*b = (*b)[:len(*b)-1]
	return last
}

func (c *call) mergeHeads(ctx context.Context, heads []*head) error {
	var queue byTime
	for _, h := range heads {
		if h.fill(ctx) {
			queue = append(queue, h)
		}
	}
	heap.Init(&queue)
	var batch []*swarmpb.LogRecords
	size := 0
	flush := func() error {
		if size == 0 {
			return nil
		}
		err := c.batch(batch...)
		batch, size = nil, 0
		return err
	}
	for len(queue) > 0 {
		h := queue[0]
		n := bytes.IndexByte(h.lines, '\n') + 1
		if last := len(batch) - 1; last >= 0 && batch[last].Source == h.number {
			batch[last].Records = append(batch[last].Records, h.lines[:n]...)
		} else {
			batch = append(batch, &swarmpb.LogRecords{Source: h.number, Records: bytes.Clone(h.lines[:n])})
		}
		h.lines = h.lines[n:]
		if size += n; size >= batchBytes {
			if err := flush(); err != nil {
				return err
			}
		}
		if len(h.lines) == 0 {
			if !h.fill(ctx) {
				heap.Pop(&queue)
				continue
			}
		}
		heap.Fix(&queue, 0)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return flush()
}
