package replica

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"
)

func testSealer(t interface{ Fatal(...any) }, key []byte, cluster string) *sealer {
	s, err := newSealer(key, cluster)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func openTestLog(t *testing.T, path string) *logStore {
	t.Helper()
	l, damage, err := openLogStore(path, testSealer(t, testKey(), testCluster), time.Second, slog.New(slog.DiscardHandler))
	if err != nil || len(damage) > 0 {
		t.Fatal(err, damage)
	}
	t.Cleanup(func() { l.db.Close() })
	return l
}

func entries(from, to, term uint64) []*raft.Log {
	var list []*raft.Log
	for i := from; i <= to; i++ {
		list = append(list, &raft.Log{Index: i, Term: term, Data: []byte{byte(i), byte(term)}})
	}
	return list
}

func TestSealedEntry_OpensAsItWasAndNotAsAnythingElse(t *testing.T) {
	s := testSealer(t, testKey(), testCluster)
	other := testSealer(t, bytes.Repeat([]byte{7}, KeySize), testCluster)
	foreign := testSealer(t, testKey(), "cluster2")
	rapid.Check(t, func(t *rapid.T) {
		in := raft.Log{
			Index: rapid.Uint64Min(1).Draw(t, "index"), Term: rapid.Uint64().Draw(t, "term"),
			Type:       raft.LogType(rapid.IntRange(0, 5).Draw(t, "type")),
			Data:       rapid.SliceOf(rapid.Byte()).Draw(t, "data"),
			Extensions: rapid.SliceOf(rapid.Byte()).Draw(t, "extensions"),
			AppendedAt: time.Unix(0, rapid.Int64().Draw(t, "at")),
		}
		record := s.sealLog(&in)
		var out raft.Log
		if err := s.openLog(in.Index, record, &out); err != nil {
			t.Fatal(err)
		}
		if out.Index != in.Index || out.Term != in.Term || out.Type != in.Type || !out.AppendedAt.Equal(in.AppendedAt) ||
			!bytes.Equal(out.Data, in.Data) || !bytes.Equal(out.Extensions, in.Extensions) {
			t.Fatalf("%+v came back as %+v", in, out)
		}
		if err := s.openLog(in.Index-1, record, &out); !errors.Is(err, errUnsealable) {
			t.Fatalf("at another index: %v", err)
		}
		if err := other.openLog(in.Index, record, &out); !errors.Is(err, errOtherKey) {
			t.Fatalf("with another key: %v", err)
		}
		if err := foreign.openLog(in.Index, record, &out); !errors.Is(err, errUnsealable) {
			t.Fatalf("in another cluster: %v", err)
		}
		if _, err := s.openStable("CurrentTerm", record); !errors.Is(err, errUnsealable) {
			t.Fatalf("as a stable value: %v", err)
		}
		flipped := bytes.Clone(record)
		flipped[rapid.IntRange(0, len(record)-1).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		if err := s.openLog(in.Index, flipped, &out); err == nil {
			t.Fatal("a flipped bit went unseen")
		}
		if err := s.openLog(in.Index, record[:rapid.IntRange(0, len(record)-1).Draw(t, "cut")], &out); err == nil {
			t.Fatal("a cut record opened")
		}
	})
}

func TestLoadOrCreateKey_KeepsTheKeyAndRefusesAnother(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	key, err := LoadOrCreateKey(dir)
	if err != nil || len(key) != KeySize {
		t.Fatal(key, err)
	}
	again, err := LoadOrCreateKey(dir)
	if err != nil || !bytes.Equal(key, again) {
		t.Fatal("the key changed", err)
	}
	info, err := os.Stat(filepath.Join(dir, keyFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatal(info.Mode(), err)
	}
	if err := os.WriteFile(filepath.Join(dir, keyFile), []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadOrCreateKey(dir); err == nil {
		t.Fatal("a key that is cut off was taken or replaced")
	}
}

// The log is compared with a slice while it is appended to, overwritten, compacted and opened again.
func TestLogStore_BehavesLikeASlice(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		path := filepath.Join(dir, newSnapshotID(0, 0))
		l := openTestLog(t, path)
		defer func() { l.close(); os.Remove(path) }()
		l.db.NoSync = true
		var model []raft.Log // of consecutive indexes
		term, emptied := uint64(1), uint64(0)
		next := func() uint64 {
			if len(model) == 0 {
				return 1
			}
			return model[len(model)-1].Index + 1
		}
		rt.Repeat(map[string]func(*rapid.T){
			"append": func(t *rapid.T) {
				from := next()
				if len(model) == 0 {
					from = rapid.Uint64Range(1, 1000).Draw(t, "from")
				} else if rapid.Bool().Draw(t, "overwrite") {
					from = rapid.Uint64Range(model[0].Index, next()).Draw(t, "from")
					term++
				}
				batch := entries(from, from+rapid.Uint64Range(0, 20).Draw(t, "more"), term)
				if err := l.StoreLogs(batch); err != nil {
					t.Fatal(err)
				}
				for len(model) > 0 && model[len(model)-1].Index >= from {
					model = model[:len(model)-1]
				}
				for _, e := range batch {
					model = append(model, *e)
				}
			},
			"gap": func(t *rapid.T) {
				if len(model) == 0 {
					t.Skip()
				}
				if err := l.StoreLog(entries(next()+1, next()+1, term)[0]); err == nil {
					t.Fatal("an entry after a gap was taken")
				}
			},
			"compact": func(t *rapid.T) {
				if len(model) == 0 {
					t.Skip()
				}
				first, last := model[0].Index, model[len(model)-1].Index
				to := rapid.Uint64Range(first, last).Draw(t, "to")
				if err := l.DeleteRange(first, to); err != nil {
					t.Fatal(err)
				}
				if model = model[to-first+1:]; len(model) == 0 {
					emptied = to
				}
			},
			"reopen": func(*rapid.T) {
				emptied = 0
				l.close()
				l = openTestLog(t, path)
				l.db.NoSync = true
			},
			"": func(t *rapid.T) {
				first, _ := l.FirstIndex()
				last, _ := l.LastIndex()
				if len(model) == 0 {
					if first != 0 || last != emptied {
						t.Fatalf("bounds %d to %d of an empty log", first, last)
					}
					return
				}
				if first != model[0].Index || last != next()-1 {
					t.Fatalf("bounds %d to %d, not %d to %d", first, last, model[0].Index, next()-1)
				}
				for _, want := range model {
					var got raft.Log
					if err := l.GetLog(want.Index, &got); err != nil || got.Term != want.Term || !bytes.Equal(got.Data, want.Data) {
						t.Fatalf("entry %d: %+v, %v", want.Index, got, err)
					}
				}
				var got raft.Log
				if l.GetLog(first-1, &got) != raft.ErrLogNotFound || l.GetLog(last+1, &got) != raft.ErrLogNotFound {
					t.Fatal("there are entries outside the bounds")
				}
			},
		})
	})
}

func TestDeleteRange_LeavesWhatTheOlderSnapshotNeeds(t *testing.T) {
	for _, tt := range []struct {
		name         string
		keep, newest uint64
		from, to     uint64
		first, last  uint64
	}{
		{"back to the older snapshot", 40, 80, 1, 80, 41, 100},
		{"less than that", 40, 80, 1, 30, 31, 100},
		{"one snapshot alone", 0, 80, 1, 80, 1, 100},
		{"conflicting suffix", 40, 80, 90, 100, 1, 100},
		{"all, after a snapshot from a leader that reaches further", 200, 200, 1, 100, 0, 0},
		{"all, after a snapshot from a leader that reaches less far", 90, 90, 1, 100, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := openTestLog(t, filepath.Join(t.TempDir(), "raft.db"))
			if err := l.StoreLogs(entries(1, 100, 1)); err != nil {
				t.Fatal(err)
			}
			l.retain = func() (uint64, uint64) { return tt.keep, tt.newest }
			if err := l.DeleteRange(tt.from, tt.to); err != nil {
				t.Fatal(err)
			}
			if l.first != tt.first || l.last != tt.last {
				t.Errorf("log is %d to %d, not %d to %d", l.first, l.last, tt.first, tt.last)
			}
		})
	}
}

// Raft believes in the entries of a suffix until the append after its removal has succeeded.
func TestConflictingSuffix_AppendFails_OldEntriesAreStillThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := openTestLog(t, filepath.Join(t.TempDir(), "raft.db"))
		if err := l.StoreLogs(entries(1, 10, 1)); err != nil {
			t.Fatal(err)
		}
		hang := make(chan struct{})
		l.setStall(func() { <-hang })
		if err := l.DeleteRange(5, 10); err != nil {
			t.Fatal(err)
		}
		if err := l.StoreLogs(entries(5, 6, 2)); !errors.Is(err, errWriteDeadline) {
			t.Fatalf("append on a disk that hangs: %v", err)
		}
		var e raft.Log
		if err := l.GetLog(7, &e); err != nil || e.Term != 1 {
			t.Fatalf("entry 7: %+v, %v", e, err)
		}
		if err := l.StoreLogs(entries(5, 6, 2)); !errors.Is(err, errWriteHung) {
			t.Fatalf("append while another hangs: %v", err)
		}
		close(hang)
		eventually(t, "the hung write", func() bool { return l.StoreLogs(entries(5, 5, 3)) == nil })
		if err := l.GetLog(5, &e); err != nil || e.Term != 3 || l.last != 5 {
			t.Fatalf("entry 5: %+v, %v; last %d", e, err, l.last)
		}
	})
}

func TestHungWrite_Returns_BoundsAreReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := openTestLog(t, filepath.Join(t.TempDir(), "raft.db"))
		hang := make(chan struct{})
		l.setStall(func() { <-hang })
		if err := l.StoreLogs(entries(1, 3, 1)); !errors.Is(err, errWriteDeadline) {
			t.Fatal(err)
		}
		if last, _ := l.LastIndex(); last != 0 {
			t.Fatalf("last is %d before the write has returned", last)
		}
		close(hang)
		synctest.Wait()
		eventually(t, "the bounds", func() bool { last, _ := l.LastIndex(); return last == 3 })
	})
}

func TestClose_WithHungWrite_DoesNotHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := openTestLog(t, filepath.Join(t.TempDir(), "raft.db"))
		hang := make(chan struct{})
		l.setStall(func() { <-hang })
		term := make(chan error, 1)
		go func() { term <- stableStore{l}.SetUint64(keyTerm, 7) }()
		synctest.Wait()
		l.interrupt()
		if err := <-term; err != nil {
			t.Errorf("Raft panics on an error of the term: %v", err)
		}
		if err := l.close(); !errors.Is(err, errWriteHung) {
			t.Errorf("close: %v", err)
		}
		close(hang)
	})
}

// Whatever bit flips, a log that opens without damage holds what was written, or the state before the last
// transaction: bbolt goes back to it when its newest meta page is damaged, as after a torn write.
func TestLogFile_BitFlipAnywhere_IsNeverBelieved(t *testing.T) {
	used := func(file []byte) int { return len(bytes.TrimRight(file, "\x00")) }
	flips := func(file []byte) (bits []int) {
		for range 200 {
			bits = append(bits, rand.IntN(8*used(file)))
		}
		return bits
	}
	if seen := flipBits(t, flips); seen == 0 {
		t.Error("no flipped bit was seen at all")
	}
}

// A page that counts fewer elements than it has hides the last of them, and all else in it is in order.
func TestLogFile_PageForgetsElements_IsNeverBelieved(t *testing.T) {
	flips := func(file []byte) (bits []int) {
		for page := 2 * os.Getpagesize(); page < len(file); page += os.Getpagesize() {
			for bit := range 8 {
				if count := binary.LittleEndian.Uint16(file[page+10:]); count&(1<<bit) != 0 {
					bits = append(bits, 8*(page+10)+bit)
				}
			}
		}
		return bits
	}
	if seen := flipBits(t, flips); seen == 0 {
		t.Error("no damaged count was seen at all")
	}
}

// flipBits opens a log of 90 entries and a term again and again, each time with one of the bits flipped, fails where
// something is lost without a word, and returns how often damage was reported.
func flipBits(t *testing.T, bits func(file []byte) []int) (seen int) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "raft.db")
	l := openTestLog(t, path)
	if err := (stableStore{l}).SetUint64(keyTerm, 7); err != nil {
		t.Fatal(err)
	}
	for i := range uint64(30) {
		if err := l.StoreLogs(entries(3*i+1, 3*i+3, 1)); err != nil {
			t.Fatal(err)
		}
	}
	l.close()
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := testSealer(t, testKey(), testCluster)
	for i, bit := range bits(good) {
		bad := bytes.Clone(good)
		bad[bit/8] ^= 1 << (bit % 8)
		broken := filepath.Join(dir, fmt.Sprint("broken", i)) // what bbolt has mapped must not change
		if err := os.WriteFile(broken, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		l, damage, err := openLogStore(broken, s, time.Second, slog.New(slog.DiscardHandler))
		if err != nil {
			seen++
			continue
		}
		if len(damage) > 0 {
			seen++
		} else if l.first != 1 || l.last != 90 && l.last != 87 {
			t.Errorf("bit %d of byte %d: log is %d to %d and nothing was said", bit%8, bit/8, l.first, l.last)
		} else if term, err := (stableStore{l}).GetUint64(keyTerm); err != nil || term != 7 {
			t.Errorf("bit %d of byte %d: term is %d, %v", bit%8, bit/8, term, err)
		}
		l.close()
		os.Remove(broken)
	}
	return seen
}
