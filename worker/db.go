package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Buckets of the local database, and the keys of bucketNode. Values are protobuf messages, but for keyContact and bucketComebacks. The file is
// readable for root alone: the configuration has the gossip keys, which prove nothing about who speaks.
const (
	bucketTasks     = "tasks"     // task ID -> AssignedTask
	bucketTemplates = "templates" // service/version -> AssignedTemplate
	bucketStatuses  = "statuses"  // task ID -> TaskStatus, the newest
	bucketAcked     = "acked"     // task ID -> nothing: the managers have that status
	bucketComebacks = "comebacks" // task ID -> comeback, as JSON
	bucketPeers     = "peers"     // node ID -> Peer
	bucketNetworks  = "networks"  // network ID -> AssignedNetwork
	bucketServices  = "services"  // service ID -> AssignedService
	bucketEndpoints = "endpoints" // task ID -> Endpoint
	bucketNode      = "node"
	keyConfig       = "config"   // NodeConfig
	keyManagers     = "managers" // SessionResponse with its managers alone
	keyVersion      = "version"  // AssignmentsResponse with its version alone: the highest applied
	keyContact      = "contact"  // contactRecord, as JSON
)

var buckets = [...]string{bucketTasks, bucketTemplates, bucketStatuses, bucketAcked, bucketComebacks,
	bucketPeers, bucketNetworks, bucketServices, bucketEndpoints, bucketNode}

// aboutDB names problems of the database.
const aboutDB = "local database"

// templateKey names a template.
type templateKey struct {
	service string
	version uint64
}

func (k templateKey) String() string { return k.service + "/" + strconv.FormatUint(k.version, 10) }

// kept is what the database holds.
type kept struct {
	tasks     map[string]*swarmpb.AssignedTask
	templates map[templateKey]*swarmpb.AssignedTemplate
	statuses  map[string]*swarmpb.TaskStatus
	acked     map[string]bool
	comebacks map[string]comeback
	// rows say how tasks are reached.
	rows     map[dbKey]proto.Message
	config   *swarmpb.NodeConfig
	managers []*swarmpb.ManagerPeer
	version  uint64
	contact  []byte
	// unread: it could not be opened, so that nothing is known of what it holds.
	unread bool
}

type dbKey struct{ bucket, key string }

// db is the local database. Writes are gathered and committed together by run; while the disk does not take them
// they wait in memory, newest only, and a problem says so: no container depends on it.
type db struct {
	path   string
	log    *slog.Logger
	issues *problems

	// whole is held for reading while rows are set that belong together, and for writing while rows are taken to be written.
	whole sync.RWMutex

	mu      sync.Mutex
	bolt    *bolt.DB // nil while it cannot be opened
	pending map[dbKey][]byte
	// put and done count: everything up to done is on the disk. failed is the error of the last try.
	put, done uint64
	failed    error
	turn      chan struct{} // closed, and made anew, after each try
	wake      chan struct{}
}

func newDB(dir string, log *slog.Logger, issues *problems) *db {
	return &db{
		path: filepath.Join(dir, "worker.db"), log: log, issues: issues, pending: map[dbKey][]byte{},
		turn: make(chan struct{}), wake: make(chan struct{}, 1),
	}
}

// open opens the database. A file that is broken is moved aside, as the managers tell everything anew; a disk
// that takes no new file is a problem only. The one error is that another process has it open.
func (d *db) open() error {
	err := d.tryOpen()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, bolterrors.ErrTimeout):
		return fmt.Errorf("open %s: another swarmd uses this data directory; stop it, or choose another with --data-dir", d.path)
	}
	// An error of the system (a full or read-only disk, no descriptor left) says nothing against the file.
	var system syscall.Errno
	if _, statErr := os.Stat(d.path); statErr == nil && !errors.As(err, &system) {
		aside := d.path + ".broken"
		d.log.Error("local database is broken, moved aside", "path", aside, "error", err)
		if renameErr := os.Rename(d.path, aside); renameErr == nil {
			err = d.tryOpen()
		}
	}
	if err != nil {
		d.failing(err)
	}
	return nil
}

// tryOpen turns a panic of the library over a damaged file into an error.
func (d *db) tryOpen() (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("open %s: %v", d.path, r)
		}
	}()
	if err := os.MkdirAll(filepath.Dir(d.path), 0o700); err != nil {
		return err
	}
	b, err := bolt.Open(d.path, 0o600, &bolt.Options{Timeout: 2 * time.Second, NoFreelistSync: true, FreelistType: bolt.FreelistMapType})
	if err != nil {
		return err
	}
	if err := makeBuckets(b); err != nil {
		return errors.Join(err, b.Close())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bolt = b
	return nil
}

// makeBuckets writes nothing where they are there: what is on a full disk is to be read all the same.
func makeBuckets(b *bolt.DB) error {
	missing := false
	err := b.View(func(tx *bolt.Tx) error {
		for _, name := range buckets {
			missing = missing || tx.Bucket([]byte(name)) == nil
		}
		return nil
	})
	if err != nil || !missing {
		return err
	}
	return b.Update(func(tx *bolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
				return err
			}
		}
		return nil
	})
}

func (d *db) close() {
	if err := d.flush(); err != nil {
		d.log.Warn("local database: the last changes are lost", "error", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.bolt != nil {
		if err := d.bolt.Close(); err != nil {
			d.log.Warn("close local database", "error", err)
		}
	}
	d.bolt, d.pending = nil, map[dbKey][]byte{}
}

// wipe removes the closed database.
func (d *db) wipe() error {
	if err := os.Remove(d.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove local database: %w", err)
	}
	return nil
}

// load reads everything. What cannot be read is left out: the managers tell it anew.
func (d *db) load() (k kept) {
	k = kept{
		tasks: map[string]*swarmpb.AssignedTask{}, templates: map[templateKey]*swarmpb.AssignedTemplate{},
		statuses: map[string]*swarmpb.TaskStatus{}, acked: map[string]bool{}, comebacks: map[string]comeback{},
		rows: map[dbKey]proto.Message{},
	}
	d.mu.Lock()
	b := d.bolt
	d.mu.Unlock()
	if b == nil {
		k.unread = true
		return k
	}
	defer func() {
		if r := recover(); r != nil {
			k.unread = true
			d.log.Error("local database cannot be read", "error", r)
		}
	}()
	if err := b.View(func(tx *bolt.Tx) error { return k.read(tx) }); err != nil {
		k.unread = true
		d.log.Error("local database cannot be read", "error", err)
	}
	return k
}

func (k *kept) read(tx *bolt.Tx) error {
	var errs []error
	each := func(bucket string, read func(key string, value []byte) error) {
		errs = append(errs, tx.Bucket([]byte(bucket)).ForEach(func(key, value []byte) error {
			if err := read(string(key), value); err != nil {
				errs = append(errs, fmt.Errorf("%s %s: %w", bucket, key, err))
			}
			return nil
		}))
	}
	each(bucketTasks, func(key string, value []byte) error {
		m := &swarmpb.AssignedTask{}
		k.tasks[key] = m
		return proto.Unmarshal(value, m)
	})
	each(bucketTemplates, func(_ string, value []byte) error {
		m := &swarmpb.AssignedTemplate{}
		err := proto.Unmarshal(value, m)
		k.templates[templateKey{m.GetServiceId(), m.GetVersion()}] = m
		return err
	})
	each(bucketStatuses, func(key string, value []byte) error {
		m := &swarmpb.TaskStatus{}
		k.statuses[key] = m
		return proto.Unmarshal(value, m)
	})
	each(bucketAcked, func(key string, _ []byte) error {
		k.acked[key] = true
		return nil
	})
	each(bucketComebacks, func(key string, value []byte) error {
		var c comeback
		err := json.Unmarshal(value, &c)
		k.comebacks[key] = c
		return err
	})
	for _, bucket := range reachBuckets {
		each(bucket, func(key string, value []byte) error {
			m := newRow(bucket)
			if err := proto.Unmarshal(value, m); err != nil || len(k.rows) >= maxSetChanges {
				return err
			}
			k.rows[dbKey{bucket, key}] = m
			return nil
		})
	}
	each(bucketNode, k.readNode)
	return errors.Join(errs...)
}

func (k *kept) readNode(key string, value []byte) error {
	switch key {
	case keyConfig:
		k.config = &swarmpb.NodeConfig{}
		return proto.Unmarshal(value, k.config)
	case keyManagers:
		m := &swarmpb.SessionResponse{}
		err := proto.Unmarshal(value, m)
		k.managers = m.GetManagers()
		return err
	case keyVersion:
		m := &swarmpb.AssignmentsResponse{}
		err := proto.Unmarshal(value, m)
		k.version = m.GetVersion()
		return err
	case keyContact:
		k.contact = bytes.Clone(value)
	}
	return nil
}

// set queues a write; a nil message deletes.
func (d *db) set(bucket, key string, m proto.Message) {
	var value []byte
	if m != nil && m.ProtoReflect().IsValid() {
		var err error
		if value, err = proto.Marshal(m); err != nil {
			d.log.Error("encode for the local database", "bucket", bucket, "key", key, "error", err)
			return
		}
		value = append([]byte{}, value...) // never nil: an empty message is a value
	}
	d.setBytes(bucket, key, value)
}

// together has all that fn sets written in one transaction. fn waits for nothing that a write may depend on.
func (d *db) together(fn func()) {
	d.whole.RLock()
	defer d.whole.RUnlock()
	fn()
}

// setBytes queues a write; nil deletes.
func (d *db) setBytes(bucket, key string, value []byte) {
	d.mu.Lock()
	d.pending[dbKey{bucket, key}] = value
	d.put++
	d.mu.Unlock()
	poke(d.wake)
}

// flushed waits until all that was set before is on the disk; an error means that a try to write it failed.
func (d *db) flushed(ctx context.Context) error {
	d.mu.Lock()
	want := d.put
	for d.done < want {
		turn := d.turn
		d.mu.Unlock()
		select {
		case <-turn:
		case <-ctx.Done():
			return ctx.Err()
		}
		d.mu.Lock()
		if d.failed != nil && d.done < want {
			err := d.failed
			d.mu.Unlock()
			return err
		}
	}
	d.mu.Unlock()
	return nil
}

// run commits what is set until ctx ends.
func (d *db) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.wake:
		}
		for d.flush() != nil {
			if !sleep(ctx, time.Second) {
				return nil
			}
		}
	}
}

// flush commits what is pending. What is set meanwhile is not overwritten when the commit fails.
func (d *db) flush() error {
	d.whole.Lock()
	d.mu.Lock()
	batch, upTo, b := d.pending, d.put, d.bolt
	d.pending = map[dbKey][]byte{}
	d.mu.Unlock()
	d.whole.Unlock()

	err := d.commit(b, batch)
	d.failing(err)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil {
		d.done = upTo
	} else {
		for key, value := range batch {
			if _, newer := d.pending[key]; !newer {
				d.pending[key] = value
			}
		}
	}
	d.failed = err
	close(d.turn)
	d.turn = make(chan struct{})
	return err
}

func (d *db) commit(b *bolt.DB, batch map[dbKey][]byte) error {
	if len(batch) == 0 {
		return nil
	}
	if b == nil {
		if err := d.tryOpen(); err != nil {
			return err
		}
		d.mu.Lock()
		b = d.bolt
		d.mu.Unlock()
	}
	return b.Update(func(tx *bolt.Tx) error {
		for at, value := range batch {
			bucket := tx.Bucket([]byte(at.bucket))
			var err error
			if value == nil {
				err = bucket.Delete([]byte(at.key))
			} else {
				err = bucket.Put([]byte(at.key), value)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func (d *db) failing(err error) {
	news := d.issues.set(aboutDB, err)
	switch {
	case err != nil && news:
		d.log.Error("local database does not take writes; containers go on", "error", err)
	case err == nil && news:
		d.log.Info("local database takes writes again")
	}
}

// poke wakes whoever waits on a channel with room for one.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// sleep pauses; false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
