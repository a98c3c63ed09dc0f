package replica

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
)

// stopped makes a single member with writes and snapshots, and stops it.
func stopped(t *testing.T, snapshots int) *member {
	t.Helper()
	c := newCluster(t, 1, nil)
	m := c.leader()
	for range snapshots {
		for range 10 {
			m.mustPropose(alarm("a", ""))
		}
		if err := m.node.Load().Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
	}
	for range 10 {
		m.mustPropose(alarm("a", ""))
	}
	m.stop()
	return m
}

// edit changes the log's file behind the store's back.
func (m *member) edit(t *testing.T, f func(entries, values *bbolt.Bucket) error) {
	t.Helper()
	db, err := bbolt.Open(filepath.Join(m.dir, "raft.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.Update(func(tx *bbolt.Tx) error { return f(tx.Bucket(bucketLog), tx.Bucket(bucketStable)) })
	if err != nil {
		t.Fatal(err)
	}
}

func (m *member) flipEntry(t *testing.T, index uint64) {
	m.edit(t, func(entries, _ *bbolt.Bucket) error {
		record := append([]byte(nil), entries.Get(indexKey(index))...)
		record[len(record)-20] ^= 4
		return entries.Put(indexKey(index), record)
	})
}

// cut makes the log end before the entry from, as if the rest had never been written.
func cut(entries *bbolt.Bucket, from, last uint64) error {
	for i := from; i <= last; i++ {
		if err := entries.Delete(indexKey(i)); err != nil {
			return err
		}
	}
	return entries.SetSequence(from - 1)
}

func (m *member) newest(t *testing.T) string {
	t.Helper()
	list, _ := m.snapshots.List()
	return m.snapshots.path(list[0].ID)
}

func flipFile(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)-30] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (m *member) mustRefuse(t *testing.T, want string) {
	t.Helper()
	for range 2 { // a refusal leaves everything as it is
		_, err := New(m.config())
		var data *DataError
		if !errors.As(err, &data) || !strings.Contains(err.Error(), want) {
			t.Fatalf("New = %v, which does not say %q", err, want)
		}
	}
}

func (m *member) mustCount(t *testing.T, want uint64) {
	t.Helper()
	m.restart()
	m.cluster.leader()
	if _, err := m.ReadIndex(t.Context()); err != nil || m.count("a") != want {
		t.Fatalf("count is %d, not %d: %v", m.count("a"), want, err)
	}
}

func TestRestart_BitFlipInTheLog_Refuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := stopped(t, 0)
		m.flipEntry(t, m.logs.last-3)
		m.mustRefuse(t, "join the node to the cluster again")
	})
}

func TestRestart_EntryMissing_Refuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := stopped(t, 0)
		m.edit(t, func(entries, _ *bbolt.Bucket) error { return entries.Delete(indexKey(m.logs.last - 3)) })
		m.mustRefuse(t, "missing")
	})
}

func TestRestart_UnsealedEntry_Refuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := stopped(t, 0)
		m.edit(t, func(entries, _ *bbolt.Bucket) error {
			return entries.Put(indexKey(m.logs.last), []byte("a record in clear, as another version might have written it, long enough"))
		})
		m.mustRefuse(t, "not a sealed record")
	})
}

func TestRestart_EntryOfAnotherPlace_Refuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := stopped(t, 0)
		m.edit(t, func(entries, _ *bbolt.Bucket) error {
			return entries.Put(indexKey(m.logs.last), append([]byte(nil), entries.Get(indexKey(m.logs.last-1))...))
		})
		m.mustRefuse(t, "does not open")
	})
}

func TestRestart_BitFlipInTheTerm_Refuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := stopped(t, 0)
		m.edit(t, func(_, values *bbolt.Bucket) error {
			record := append([]byte(nil), values.Get(keyTerm)...)
			binary.BigEndian.PutUint64(record[len(record)-8:], 77)
			return values.Put(keyTerm, record)
		})
		m.mustRefuse(t, "CurrentTerm")
	})
}

func TestRestart_AnotherKey_Refuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, snapshots := range []int{0, 2} {
			m := stopped(t, snapshots)
			cfg := m.config()
			cfg.Key = []byte("another key another key another!")
			_, err := New(cfg)
			if !errors.Is(err, errOtherKey) || !strings.Contains(err.Error(), "put back the data key") {
				t.Fatalf("New = %v", err)
			}
			m.mustCount(t, uint64(10*snapshots+10))
		}
	})
}

func TestRestart_NewestSnapshotDamaged_FallsBackToTheOlderAndItsLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, snapshots := range []int{1, 2, 3} {
			m := stopped(t, snapshots)
			flipFile(t, m.newest(t))
			m.mustCount(t, uint64(10*snapshots+10))
			m.stop()
			m.mustCount(t, uint64(10*snapshots+10))
		}
	})
}

func TestRestart_AllSnapshotsDamagedAndLogCompacted_Refuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, func(m *member) { m.tuning.TrailingLogs = 1 })
		m := c.leader()
		for range 3 {
			for range 10 {
				m.mustPropose(alarm("a", ""))
			}
			if err := m.node.Load().Snapshot().Error(); err != nil {
				t.Fatal(err)
			}
		}
		if m.logs.first < 10 {
			t.Fatalf("the log begins at %d and was not compacted", m.logs.first)
		}
		m.stop()
		list, _ := m.snapshots.List()
		for _, meta := range list {
			flipFile(t, m.snapshots.path(meta.ID))
		}
		m.mustRefuse(t, "the Raft log begins at entry")
	})
}

func TestRestart_NewestSnapshotDamagedAndLogTooShort_Refuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := stopped(t, 2)
		list, _ := m.snapshots.List()
		flipFile(t, m.newest(t))
		m.edit(t, func(entries, _ *bbolt.Bucket) error {
			return cut(entries, list[0].Index, m.logs.last)
		})
		m.mustRefuse(t, "the Raft log ends at")
	})
}

func TestRestart_DamageThatASnapshotCovers_IsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := stopped(t, 2)
		m.flipEntry(t, 5)
		m.mustCount(t, 30)
	})
}

// A crash between the arrival of a leader's snapshot and the removal of the log before it.
func TestRestart_LogThatDoesNotReachTheSnapshot_IsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := stopped(t, 2)
		list, _ := m.snapshots.List()
		m.edit(t, func(entries, _ *bbolt.Bucket) error {
			return cut(entries, list[0].Index-3, m.logs.last)
		})
		m.mustCount(t, 20)
	})
}

func TestLogFile_OpenElsewhere_SaysSo(t *testing.T) {
	m := &member{cluster: &cluster{t: t, net: newMemNet()}, id: "m1", address: "m1:2377", dir: t.TempDir()}
	m.open()
	defer m.Close()
	start := time.Now()
	_, err := New(m.config())
	var data *DataError
	if !errors.Is(err, errLogInUse) || errors.As(err, &data) || time.Since(start) > 20*time.Second {
		t.Fatalf("New = %v", err)
	}
}

var _ raft.MonotonicLogStore = (*logStore)(nil)
