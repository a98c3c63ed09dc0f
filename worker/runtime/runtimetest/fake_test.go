package runtimetest_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest/program"
)

func TestFake_Conformance(t *testing.T) {
	archive, err := runtimetest.Archive(runtimetest.ImageName, "amd64", []byte("never run"))
	if err != nil {
		t.Fatal(err)
	}
	runtimetest.Conformance(t, runtimetest.Options{
		Virtual: true,
		Open: func(t *testing.T) runtimetest.System {
			fake := runtimetest.NewFake(runtimetest.FakeConfig{
				Dir: t.TempDir(),
				Remote: func(ref, _ string) (runtimetest.FakeImage, error) {
					if strings.HasPrefix(ref, "registry.test/") {
						return runtimetest.FakeImage{}, fmt.Errorf("%s: %w", ref, runtime.ErrNotFound)
					}
					return runtimetest.FakeImage{}, errors.New("connection refused")
				},
			})
			return runtimetest.System{
				Runtime:  fake,
				Reopen:   func(*testing.T) runtime.Runtime { return fake },
				Archive:  func() io.Reader { return bytes.NewReader(archive) },
				Registry: "registry.test",
				Logs:     func(id string) (string, error) { return fake.Logs(id), nil },
				Limits:   true,
			}
		},
	})
}

func TestParse_CommandLines_GiveProgramsOrErrors(t *testing.T) {
	good := map[string]program.Program{
		"":                          {Kind: program.Sleep, After: program.Forever},
		"/testimage sleep":          {Kind: program.Sleep, After: program.Forever},
		"sleep 5":                   {Kind: program.Sleep, After: 5e9},
		"exit 3":                    {Kind: program.Exit, Code: 3},
		"exit 3 20ms":               {Kind: program.Exit, Code: 3, After: 20e6},
		"ignore-term":               {Kind: program.IgnoreTerm, After: program.Forever},
		"hog 10":                    {Kind: program.Hog, Bytes: 10, After: program.Forever},
		"print hello 1m":            {Kind: program.Print, Text: "hello", After: 60e9},
		"/x/testimage report /f r:": {Kind: program.WriteReport, File: "/f", Probes: []string{"r:"}},
	}
	for line, want := range good {
		got, err := program.Parse(strings.Fields(line))
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%q: %+v, %v; want %+v", line, got, err, want)
		}
	}
	for _, line := range []string{"exit", "exit x", "sleep -1s", "sleep x", "print", "report", "hog", "unknown"} {
		if _, err := program.Parse(strings.Fields(line)); err == nil {
			t.Errorf("%q: no error", line)
		}
	}
}
