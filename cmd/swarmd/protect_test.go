package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestProtect_ScoreAboveAndBelow_IsLoweredOrLeft(t *testing.T) {
	for before, want := range map[string]string{"0\n": "-500", "-499\n": "-500", "-500\n": "-500\n", "-999\n": "-999\n"} {
		file := filepath.Join(t.TempDir(), "oom_score_adj")
		if err := os.WriteFile(file, []byte(before), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := protect(file); err != nil {
			t.Error(err)
		}
		if got, _ := os.ReadFile(file); string(got) != want {
			t.Errorf("%q became %q, want %q", before, got, want)
		}
	}
	if protect(filepath.Join(t.TempDir(), "none")) == nil {
		t.Error("no error without the file")
	}
}
