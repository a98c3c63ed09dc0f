package replica

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// Raft stops to read a pipeline's answers at the first that is no success, and may be sending at that moment. Without
// an end of the pipeline it would go on to do so forever: the follower gets nothing more, and Raft cannot shut down.
func TestPipeline_AnswersNoLongerRead_SendsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		open := func(name string) observedTransport {
			config := (&member{cluster: &cluster{net: n}, address: name}).config()
			return observedTransport{progress: &progressTable{}, NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
				Stream: newStreamLayer(&config), MaxPool: transportConnections, Timeout: transportTimeout, Logger: newRaftLogger(slog.New(slog.DiscardHandler)),
			})}
		}
		leader, follower := open("a:1"), open("b:1")
		done := make(chan struct{})
		go func() {
			for {
				select {
				case request := <-follower.Consumer():
					request.Respond(&raft.AppendEntriesResponse{Term: 1}, nil)
				case <-done:
					return
				}
			}
		}()
		pipeline, err := leader.AppendEntriesPipeline("b", "b:1")
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() {
			for i := range 100 {
				if _, err := pipeline.AppendEntries(&raft.AppendEntriesRequest{Term: 1, PrevLogEntry: uint64(i)}, new(raft.AppendEntriesResponse)); err != nil {
					ended <- err
					return
				}
			}
			ended <- nil
		}()
		<-pipeline.Consumer()
		select {
		case err := <-ended:
			if err == nil {
				t.Error("everything was sent to a pipeline whose answers nobody reads")
			}
		case <-time.After(time.Minute):
			t.Error("a send waits forever")
		}
		pipeline.Close()
		close(done)
		leader.Close()
		follower.Close()
	})
}
