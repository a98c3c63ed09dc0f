package replica

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"
)

func openTestSnapshots(t *testing.T, dir string) *snapshotStore {
	t.Helper()
	read := func(r io.Reader) error { _, err := io.Copy(io.Discard, r); return err }
	ss, _, err := openSnapshotStore(dir, testSealer(t, testKey(), testCluster), read, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return ss
}

func takeTestSnapshot(ss *snapshotStore, index uint64, data []byte) (string, error) {
	sink, err := ss.Create(1, index, 1, raft.Configuration{Servers: []raft.Server{{ID: "m1", Address: "m1:2377"}}}, 1, nil)
	if err != nil {
		return "", err
	}
	sink.(*snapshotSink).markLocal(func(w io.Writer) error { _, err := w.Write(data); return err })
	if _, err := sink.Write(data); err != nil {
		return "", err
	}
	return sink.ID(), sink.Close()
}

// The log asks for the snapshots' lock under its own.
func TestSnapshot_Taken_IsToldWithoutTheLock(t *testing.T) {
	ss := openTestSnapshots(t, t.TempDir())
	told := 0
	ss.taken = func() {
		if told++; !ss.mu.TryLock() {
			t.Error("the lock is held")
			return
		}
		ss.mu.Unlock()
	}
	if _, err := takeTestSnapshot(ss, 1, []byte("data")); err != nil || told != 1 {
		t.Errorf("told %d times, %v", told, err)
	}
}

// A disk that hangs holds up neither the log nor who asks for the members, which need the snapshots' lock.
func TestSnapshot_OldOnesAreRemoved_WithoutTheLock(t *testing.T) {
	ss := openTestSnapshots(t, t.TempDir())
	if err := os.WriteFile(ss.path("7-1-bad")+damagedSuffix, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	removed := 0
	ss.remove = func(path string) error {
		if removed++; !ss.mu.TryLock() {
			t.Error("the lock is held")
			return nil
		}
		ss.mu.Unlock()
		return os.Remove(path)
	}
	for i := range uint64(snapshotsKept + 1) {
		if _, err := takeTestSnapshot(ss, i+1, []byte("data")); err != nil {
			t.Fatal(err)
		}
	}
	files, err := os.ReadDir(ss.dir)
	if err != nil || len(files) != snapshotsKept || removed != 2 {
		t.Errorf("%d files are left, %d were removed, %v", len(files), removed, err)
	}
}

func TestSnapshot_OfAnySize_ComesBackWithItsSize(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		ss := openTestSnapshots(t, dir)
		size := rapid.SampledFrom([]int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 2 * chunkSize, 3*chunkSize + 7}).Draw(rt, "size")
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(i * 31)
		}
		id, err := takeTestSnapshot(ss, rapid.Uint64Min(1).Draw(rt, "index"), data)
		if err != nil {
			rt.Fatal(err)
		}
		meta, r, err := ss.Open(id)
		if err != nil {
			rt.Fatal(err)
		}
		defer r.Close()
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, data) || meta.Size != int64(size) || meta.ID != id || len(meta.Configuration.Servers) != 1 {
			rt.Fatalf("%d bytes came back as %d, meta %+v, %v", size, len(got), meta, err)
		}
		for _, s := range ss.known {
			os.Remove(ss.path(s.ID))
		}
	})
}

func TestSnapshot_FlippedCutOrMoved_IsRefused(t *testing.T) {
	dir := t.TempDir()
	ss := openTestSnapshots(t, dir)
	id, err := takeTestSnapshot(ss, 5, make([]byte, 2*chunkSize+99))
	if err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(ss.path(id))
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, bad []byte, id string) {
		t.Helper()
		if err := os.WriteFile(ss.path(id), bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := ss.verify(id, nil); err == nil {
			t.Errorf("%s was not seen", what)
		}
	}
	for range 200 {
		bad := bytes.Clone(good)
		at := rand.IntN(len(bad))
		bad[at] ^= 1 << rand.IntN(8)
		refused("a flipped bit", bad, id)
		refused("a cut", good[:at], id)
	}
	refused("a missing last chunk", good[:len(good)-99-chunkOverhead], id)
	refused("a chunk too many", append(bytes.Clone(good), good[len(good)-99-chunkOverhead:]...), id)
	refused("another's name", good, newSnapshotID(6, 1))
	other := &snapshotStore{dir: dir, check: ss.check, logger: ss.logger}
	other.sealer = testSealer(t, bytes.Repeat([]byte{1}, KeySize), testCluster)
	if err := os.WriteFile(ss.path(id), good, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := other.verify(id, nil); !errors.Is(err, errOtherKey) {
		t.Errorf("another key: %v", err)
	}
}

// One that is too large for a second store is compared with what was to be written.
func TestSnapshot_LargeAndFlipped_IsNotWhatWasToBeWritten(t *testing.T) {
	ss := openTestSnapshots(t, t.TempDir())
	ss.check = func(io.Reader) error { return errors.New("a store was made of it") }
	data := make([]byte, fullCheckBytes+chunkSize/2)
	id, err := takeTestSnapshot(ss, 5, data)
	if err != nil {
		t.Fatal(err)
	}
	for what, other := range map[string][]byte{"shorter": data[:len(data)-1], "longer": append(bytes.Clone(data), 0), "changed": append(bytes.Clone(data[:len(data)-1]), 1)} {
		again := func(w io.Writer) error { _, err := w.Write(other); return err }
		if err := ss.verify(id, again); err == nil {
			t.Errorf("%s: was not seen", what)
		}
	}
	f, err := os.OpenFile(ss.path(id), os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt([]byte{0xff, 0x55}, fullCheckBytes/2)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	if err := ss.verify(id, func(w io.Writer) error { _, err := w.Write(data); return err }); err == nil {
		t.Error("flipped bits were not seen")
	}
}

func TestSnapshots_TwoAreKeptAndPartialOnesGo(t *testing.T) {
	dir := t.TempDir()
	ss := openTestSnapshots(t, dir)
	for index := uint64(10); index <= 40; index += 10 {
		if _, err := takeTestSnapshot(ss, index, []byte("data")); err != nil {
			t.Fatal(err)
		}
	}
	if keep, newest := ss.retention(); keep != 30 || newest != 40 {
		t.Errorf("retention %d, %d", keep, newest)
	}
	sink, err := ss.Create(1, 50, 1, raft.Configuration{}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sink.Write([]byte("cancelled")); err != nil {
		t.Fatal(err)
	}
	if err := sink.Cancel(); err != nil || sink.Close() == nil {
		t.Errorf("cancelled: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "crashed"+partialSuffix), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ss = openTestSnapshots(t, dir)
	files, _ := os.ReadDir(dir)
	if len(files) != 2 || len(ss.known) != 2 || ss.known[0].Index != 40 || ss.known[1].Index != 30 {
		t.Errorf("%d files, known %+v", len(files), ss.known)
	}
}

func TestSnapshot_DoesNotVerify_DoesNotCount(t *testing.T) {
	ss := openTestSnapshots(t, t.TempDir())
	if _, err := takeTestSnapshot(ss, 10, []byte("good")); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	ss.check = func(io.Reader) error { return broken }
	if _, err := takeTestSnapshot(ss, 20, []byte("bad")); !errors.Is(err, broken) {
		t.Fatalf("Close = %v", err)
	}
	list, _ := ss.List()
	files, _ := os.ReadDir(ss.dir)
	if len(list) != 1 || list[0].Index != 10 || len(files) != 1 {
		t.Errorf("list %v, %d files", list, len(files))
	}
}

func TestSnapshot_OfAnIndexThatIsThere_TakesItsPlace(t *testing.T) {
	ss := openTestSnapshots(t, t.TempDir())
	for range 10 {
		if _, err := takeTestSnapshot(ss, 9, []byte("older")); err != nil {
			t.Fatal(err)
		}
		id, err := takeTestSnapshot(ss, 10, []byte("data"))
		if err != nil {
			t.Fatal(err)
		}
		if _, r, err := ss.Open(id); err != nil {
			t.Fatalf("the snapshot that has just come is gone: %v", err)
		} else {
			r.Close()
		}
	}
}

func TestSnapshotDue_LargeState_WaitsUntilTheLogIsAsLarge(t *testing.T) {
	tuning := DefaultTuning()
	const mib = 1 << 20
	for name, tc := range map[string]struct {
		age                    time.Duration
		entries, written, size uint64
		want                   bool
	}{
		"many entries":                                {time.Minute, 8192, 3 * mib, mib, true},
		"few entries":                                 {time.Hour, 8191, 3 * mib, mib, false},
		"many entries, just after one":                {time.Second, 8192, 3 * mib, mib, false},
		"few and large":                               {time.Second, 100, 128 * mib, mib, true},
		"many, of a state that is larger":             {time.Minute, 9000, 200 * mib, 400 * mib, false},
		"as large as the state":                       {time.Second, 9000, 400 * mib, 400 * mib, true},
		"very many small ones of a large state":       {time.Minute, 16 * 8192, 200 * mib, 400 * mib, true},
		"very many small ones, just after one":        {time.Second, 16 * 8192, 200 * mib, 400 * mib, false},
		"the first, before which nothing was written": {time.Minute, 8192, 0, 0, true},
	} {
		if got := tuning.snapshotDue(tc.age, tc.entries, tc.written, tc.size); got != tc.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
