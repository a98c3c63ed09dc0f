package wire

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestIdentity_SavedAndLoaded_IsTheSame(t *testing.T) {
	ca := newTestCA(t, "c1")
	dir := filepath.Join(t.TempDir(), "identity")
	if _, err := LoadIdentity(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("nothing saved: %v", err)
	}
	for _, want := range []Identity{
		ca.identity("n1", managerRole), ca.identity("n2", workerRole),
		ca.identityUntil("n3", workerRole, time.Now().Add(-time.Hour)),
	} {
		if err := SaveIdentity(dir, want); err != nil {
			t.Fatal(err)
		}
		got, err := LoadIdentity(dir)
		if err != nil {
			t.Fatal(err)
		}
		if got.NodeID != want.NodeID || got.ClusterID != "c1" || got.Role != want.Role || !got.Expires.Equal(want.Expires) ||
			!bytes.Equal(got.Leaf().Raw, want.Leaf().Raw) || !got.Key().Equal(want.Key()) || !bytes.Equal(got.RootPEM, want.RootPEM) {
			t.Errorf("saved %+v, got %+v", want, got)
		}
		if got.Expired(time.Now()) != (want.NodeID == "n3") {
			t.Errorf("%s: expired is %v", want.NodeID, got.Expired(time.Now()))
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Fatalf("%v left in the directory, %v", entries, err)
	}
	if info, err := entries[0].Info(); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestLoadIdentity_DamagedFile_SaysSoAndNeverPanics(t *testing.T) {
	ca := newTestCA(t, "c1")
	dir := t.TempDir()
	if err := SaveIdentity(dir, ca.identity("n1", workerRole)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, identityFile)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	other := newTestCA(t, "c2")
	for name, text := range map[string][]byte{
		"empty": nil, "garbage": []byte("garbage"), "cut": good[:len(good)/2], "twice": append(bytes.Clone(good), good...),
		"no root": bytes.TrimSuffix(good, ca.pem), "other root": append(bytes.TrimSuffix(bytes.Clone(good), ca.pem), other.pem...),
		"large": bytes.Repeat([]byte("x"), maxIdentityFile+2), "tail": append(bytes.Clone(good), "tail"...),
	} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := LoadIdentity(dir)
		if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "join again") {
			t.Errorf("%s: %v", name, err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		text := bytes.Clone(good)
		for range rapid.IntRange(1, 5).Draw(t, "flips") {
			text[rapid.IntRange(0, len(text)-1).Draw(t, "at")] = rapid.Byte().Draw(t, "byte")
		}
		if id, err := parseIdentity(text); err == nil && id.NodeID != "n1" {
			t.Fatalf("damage made it node %s", id.NodeID)
		}
	})
}

func TestWriteFile_CannotWrite_KeepsTheOldContent(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := WriteFile(path, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(filepath.Join(dir, "none", "f"), []byte("two"), 0o600); err == nil {
		t.Error("wrote into a directory that is not there")
	}
	blocked := filepath.Join(dir, "d")
	if err := os.MkdirAll(filepath.Join(blocked, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(blocked, []byte("two"), 0o600); err == nil {
		t.Error("replaced a directory")
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "one" {
		t.Errorf("%q, %v", got, err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 2 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestNewIdentity_PartsThatDoNotBelongTogether_AreRefused(t *testing.T) {
	ca, other := newTestCA(t, "c1"), newTestCA(t, "c2")
	key, _ := NewKey()
	wrong, _ := NewKey()
	chain := ca.leaf(&key.PublicKey, ca.names("n1", workerRole), time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	if _, err := IdentityFor(key, chain, ca.pem); err != nil {
		t.Fatal(err)
	}
	if _, err := IdentityFor(wrong, chain, ca.pem); err == nil {
		t.Error("another key")
	}
	if _, err := IdentityFor(key, chain, other.pem); err == nil {
		t.Error("another root")
	}
	for _, names := range [][]string{{"", "c1", WorkerOU}, {"n1", "", WorkerOU}, {"n1", "c1", "swarm-king"}, {"n1", "c1", ""}} {
		subject := ca.names(names[0], workerRole)
		subject.Organization, subject.OrganizationalUnit = []string{names[1]}, []string{names[2]}
		odd := ca.leaf(&key.PublicKey, subject, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
		if _, err := IdentityFor(key, odd, ca.pem); err == nil {
			t.Errorf("accepted %q", names)
		}
	}
}
