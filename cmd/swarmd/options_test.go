package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func resolve(t *testing.T, args ...string) (*options, error) {
	t.Helper()
	o := &options{}
	f := pflag.NewFlagSet("swarmd", pflag.ContinueOnError)
	o.define(f)
	if err := f.Parse(args); err != nil {
		t.Fatal(err)
	}
	return o, o.resolve(f)
}

func TestOptions_FlagBeatsEnvironmentBeatsFileBeatsDefault(t *testing.T) {
	file := filepath.Join(t.TempDir(), "swarmd.toml")
	if err := os.WriteFile(file, []byte("data-dir = \"/file\"\nrun-dir = \"/file\"\noci-runtime = \"crun\"\ninsecure-registry = [\"a:1\", \"b:2\"]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SWARMD_DATA_DIR", "/env")
	t.Setenv("SWARMD_RUN_DIR", "/env")
	o, err := resolve(t, "--config", file, "--data-dir", "/flag")
	if err != nil {
		t.Fatal(err)
	}
	if o.dataDir != "/flag" || o.runDir != "/env" || o.ociRuntime != "crun" || o.logLevel != "info" || strings.Join(o.insecureRegistries, " ") != "a:1 b:2" {
		t.Errorf("%+v", o)
	}
}

func TestOptions_WrongValues_NameTheSettingAndWhatToDo(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.toml")
	if err := os.WriteFile(bad, []byte("datadir = \"/x\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--data-dir", "relative"}, "--data-dir"},
		{[]string{"--config-dir", "relative"}, "--config-dir"},
		{[]string{"--listen-addr", "2377"}, "--listen-addr"},
		{[]string{"--gossip-addr", "host:7946"}, "--gossip-addr"},
		{[]string{"--gossip-addr", "10.0.0.1"}, "want IP:port"},
		{[]string{"--log-level", "loud"}, "want debug, info"},
		{[]string{"--log-format", "xml"}, "want text or json"},
		{[]string{"--config", "/does/not/exist.toml"}, "read configuration"},
		{[]string{"--config", bad}, `unknown setting "datadir"`},
	} {
		if _, err := resolve(t, c.args...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v; want %q", c.args, err, c.want)
		}
	}
}
