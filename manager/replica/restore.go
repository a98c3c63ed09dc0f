package replica

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/swarmd/swarmd/manager/store"
)

// DataError says that a member's data cannot be trusted. Nothing was changed or removed.
type DataError struct {
	Dir string
	Err error
}

func (e *DataError) Error() string {
	todo := "this manager must not vote with it: move the directory aside and join the node to the cluster again; " +
		"if it was the only manager, put a backup of the directory in its place"
	if errors.Is(e.Err, errOtherKey) {
		todo = "put back the data key that this manager was set up with"
	}
	return fmt.Sprintf("manager's data in %s cannot be used: %v; %s", e.Dir, e.Err, todo)
}

func (e *DataError) Unwrap() error { return e.Err }

// restore reads the newest snapshot that can be read, and makes sure that the log leads on from it without a gap as
// far as anything on this disk ever went. lost is the highest index of a snapshot that cannot be read.
func (r *Replica) restore(lost uint64, damage []logDamage) (*store.Store, error) {
	restored, base, lost := r.readNewest(lost)
	for _, d := range damage {
		if d.last > base.Index {
			return nil, &DataError{r.cfg.Dir, fmt.Errorf("entries %d to %d of the Raft log: %w", d.first, d.last, d.err)}
		}
	}
	first, last := r.logs.first, r.logs.last
	if n := len(damage); n > 0 {
		r.logger.Warn("damaged entries of the Raft log are dropped; a snapshot covers them",
			"to", damage[n-1].last, "snapshot", base.ID, "error", damage[n-1].err)
		if err := r.logs.deleteChunk(first, damage[n-1].last); err != nil {
			return nil, fmt.Errorf("drop damaged entries: %w", err)
		}
		first, last = r.logs.first, r.logs.last
	}
	if lost > max(last, base.Index) {
		return nil, &DataError{r.cfg.Dir, fmt.Errorf("the snapshot at index %d cannot be read and the Raft log ends at %d", lost, max(last, base.Index))}
	}
	if first == 0 {
		return restored, nil
	}
	stray, err := r.isStray(base, first, last)
	if err != nil {
		return nil, &DataError{r.cfg.Dir, err}
	}
	if stray {
		if err := r.logs.deleteChunk(first, last); err != nil {
			return nil, fmt.Errorf("drop log before snapshot %s: %w", base.ID, err)
		}
		return restored, nil
	}
	if first > base.Index+1 {
		return nil, &DataError{r.cfg.Dir, fmt.Errorf("the Raft log begins at entry %d, and the newest snapshot that can be read ends at %d", first, base.Index)}
	}
	return restored, nil
}

// readNewest returns the newest readable snapshot's store and meta, or an empty store.
func (r *Replica) readNewest(lost uint64) (*store.Store, raft.SnapshotMeta, uint64) {
	list, _ := r.snapshots.List()
	for _, meta := range list {
		restored, err := r.readSnapshot(meta.ID)
		if err == nil {
			return restored, *meta, lost
		}
		lost = max(lost, meta.Index)
		r.snapshots.reject(meta.ID, err)
	}
	return store.New(), raft.SnapshotMeta{}, lost
}

func (r *Replica) readSnapshot(id string) (*store.Store, error) {
	_, file, err := r.snapshots.Open(id)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return readSnapshot(file)
}

// isStray says whether the log does not belong to the snapshot: a crash came between the arrival of the snapshot from
// a leader and the removal of the log before it. All of such a log is covered by the snapshot or was never committed.
func (r *Replica) isStray(base raft.SnapshotMeta, first, last uint64) (bool, error) {
	if base.Index == 0 || first > base.Index {
		return false, nil
	}
	if last < base.Index {
		return true, nil
	}
	var entry raft.Log
	if err := r.logs.GetLog(base.Index, &entry); err != nil {
		return false, err
	}
	return entry.Term != base.Term, nil
}
