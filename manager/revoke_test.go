package manager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func putNode(id string) *swarmpb.Write {
	return &swarmpb.Write{Op: &swarmpb.Write_Put{Put: &swarmpb.Row{Row: &swarmpb.Row_Node{Node: &swarmpb.Node{Id: id}}}}}
}

func removeNode(id string) *swarmpb.Write {
	return &swarmpb.Write{Op: &swarmpb.Write_Delete{Delete: swarmpb.NodeKey(id)}}
}

func TestFollowRemovals_NodesGoWatchedUnwatchedAndWithTheStore_NoneIsMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := store.New()
		apply := func(entry *swarmpb.Entry) {
			for _, result := range st.Apply(st.View().Index()+1, 1, entry) {
				if err := store.ResultError(result); err != nil {
					t.Fatal(err)
				}
			}
		}
		one := func(writes ...*swarmpb.Write) *swarmpb.Entry {
			return &swarmpb.Entry{Proposals: []*swarmpb.Proposal{{Term: 1, Now: 1, Writes: writes}}}
		}
		apply(one(putNode("watched"), putNode("unwatched"), putNode("restored"), putNode("stays")))
		live := map[string]bool{"watched": true, "unwatched": true, "restored": true, "stays": true}
		expect := func(want ...string) {
			t.Helper()
			synctest.Wait()
			var got []string
			for id := range live {
				got = append(got, id)
			}
			if slices.Sort(got); !slices.Equal(got, want) {
				t.Fatalf("connected are %v, want %v", got, want)
			}
		}
		missed := func() int {
			for id := range live {
				if st.View().Node(id) == nil {
					delete(live, id)
				}
			}
			return 0
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- followRemovals(ctx, func() *store.Store { return st }, missed, func(id string) { delete(live, id) })
		}()
		synctest.Wait()

		apply(one(removeNode("watched")))
		expect("restored", "stays", "unwatched")

		// More changes in one entry than may wait for a watcher.
		entry := one(removeNode("unwatched"))
		for i := range store.MaxFeedChanges/store.MaxWrites + 2 {
			p := &swarmpb.Proposal{Term: 1, Now: 1}
			for j := range store.MaxWrites {
				p.Writes = append(p.Writes, putNode(fmt.Sprint("n", i, ".", j)))
			}
			entry.Proposals = append(entry.Proposals, p)
		}
		apply(entry)
		expect("restored", "stays")

		// A store that was restored from a snapshot takes the place of this one.
		old := st
		st = store.New()
		apply(one(putNode("stays")))
		old.Close()
		expect("stays")

		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("it ended with %v", err)
		}
	})
}
