package replica

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
)

// stableStore is Raft's term and vote, in the log's file.
//
// Raft panics when it cannot write a new term. So that write is tried until it succeeds: meanwhile Raft's loop
// stands still, and a member that cannot write neither votes nor leads. When the replica stops, its transport is
// closed before this store, so a term that was not written is never seen by anyone.
type stableStore struct{ log *logStore }

// Set implements raft.StableStore.
func (s stableStore) Set(key, value []byte) error {
	record := s.log.sealer.sealStable(string(key), value)
	put := func(tx *bbolt.Tx) error { return putStable(tx.Bucket(bucketStable), bytes.Clone(key), record) }
	if !bytes.Equal(key, keyTerm) {
		if err := s.log.write(s.log.deadline, put); err != nil {
			return fmt.Errorf("write %s: %w", key, err)
		}
		return nil
	}
	for warned := false; ; warned = true {
		err := s.log.write(0, put)
		if err == nil {
			return nil
		}
		if !warned {
			s.log.logger.Error("cannot write the Raft term; this manager neither votes nor leads until it can", "path", s.log.path, "error", err)
		}
		select {
		case <-s.log.closing:
			return nil
		case <-time.After(stableBackoff):
		}
	}
}

// putStable keeps the bucket's sequence at the number of its values; see logStore.
func putStable(b *bbolt.Bucket, key, record []byte) error {
	if b.Get(key) == nil {
		if _, err := b.NextSequence(); err != nil {
			return err
		}
	}
	return b.Put(key, record)
}

// Get implements raft.StableStore.
func (s stableStore) Get(key []byte) (value []byte, err error) {
	err = s.log.db.View(func(tx *bbolt.Tx) error {
		record := tx.Bucket(bucketStable).Get(key)
		if record == nil {
			return nil
		}
		value, err = s.log.sealer.openStable(string(key), record)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", key, err)
	}
	return value, nil
}

// SetUint64 implements raft.StableStore.
func (s stableStore) SetUint64(key []byte, value uint64) error {
	return s.Set(key, binary.BigEndian.AppendUint64(nil, value))
}

// GetUint64 implements raft.StableStore.
func (s stableStore) GetUint64(key []byte) (uint64, error) {
	value, err := s.Get(key)
	switch {
	case err != nil || value == nil:
		return 0, err
	case len(value) != 8:
		return 0, fmt.Errorf("read %s: it has %d bytes, not 8", key, len(value))
	}
	return binary.BigEndian.Uint64(value), nil
}

var errHasState = errors.New("there is state already")

// bootstrap writes the first term and configuration in one transaction, so that a crash leaves all or nothing.
func (l *logStore) bootstrap(configuration raft.Configuration) error {
	entry := &raft.Log{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(configuration)}
	record := l.sealer.sealLog(entry)
	term := l.sealer.sealStable(string(keyTerm), binary.BigEndian.AppendUint64(nil, 1))
	err := l.write(l.deadline, func(tx *bbolt.Tx) error {
		entries, values := tx.Bucket(bucketLog), tx.Bucket(bucketStable)
		if k, _ := entries.Cursor().First(); k != nil || values.Get(keyTerm) != nil {
			return errHasState
		}
		if err := putStable(values, keyTerm, term); err != nil {
			return err
		}
		if err := entries.SetSequence(1); err != nil {
			return err
		}
		return entries.Put(indexKey(1), record)
	})
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.first, l.last = 1, 1
	l.memberships.append(entry)
	return nil
}
