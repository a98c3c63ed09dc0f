package bin

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestSources_AreThoseOfTheBinaries(t *testing.T) {
	if out, err := exec.Command("go", "run", "../generate", "-dir", "..", "-check").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func TestExtract_Twice_SameWholeFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bin")
	path, err := Extract(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 10); err != nil { // as a crash may leave it
		t.Fatal(err)
	}
	again, err := Extract(dir)
	if err != nil || again != path {
		t.Fatalf("%s, %v; want %s", again, err, path)
	}
	info, err := os.Stat(path)
	if err != nil || info.Size() < 1<<20 || info.Mode().Perm() != 0o755 {
		t.Fatalf("%v, %v", info, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Fatalf("%v, %v", entries, err)
	}
}
