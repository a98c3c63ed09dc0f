package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/spf13/pflag"

	"github.com/swarmd/swarmd/worker/devices"
)

// defaultConfig is read when it is there; one that --config names must be.
const defaultConfig = "/etc/swarmd/swarmd.toml"

type options struct {
	config             string
	configDir          string
	dataDir, runDir    string
	containerd         string
	ociRuntime         string
	sharedShim         bool
	listenAddr         string
	gossipAddr         string
	logLevel           string
	logFormat          string
	cgroupParent       string
	insecureRegistries []string
	generic            genericFlag
	engineLabels       []string
	cdiDirs            []string
}

func (o *options) define(f *pflag.FlagSet) {
	f.SortFlags = false
	f.StringVar(&o.config, "config", defaultConfig, "configuration file, in TOML")
	f.StringVar(&o.configDir, "config-dir", "/etc/swarmd", "directory of registries.toml and the certificates that it names")
	f.StringVar(&o.dataDir, "data-dir", "/var/lib/swarmd", "what must survive a reboot: identity, Raft log, images, volumes, logs")
	f.StringVar(&o.runDir, "run-dir", "/run/swarmd", "what need not: swarmd.sock, containerd's state")
	f.StringVar(&o.containerd, "containerd", "", "socket of an existing containerd (default: our own, embedded)")
	f.StringVar(&o.ociRuntime, "oci-runtime", "runc", "runc, crun, auto (crun where it works, or else runc) or a path")
	f.BoolVar(&o.sharedShim, "shared-shim", false, "up to 16 containers share one shim, which saves memory and time; when the shim dies, all of them go down")
	f.StringVar(&o.listenAddr, "listen-addr", "0.0.0.0:2377", "address of the cluster port, host:port; used while this host is a manager")
	f.StringVar(&o.gossipAddr, "gossip-addr", "", "address of gossip, IP:port, TCP and UDP; the port is the same on all hosts (default: the advertised address, port 7946)")
	f.StringVar(&o.cgroupParent, "cgroup-parent", "/swarmd", "cgroup below which every container gets its own")
	f.StringSliceVar(&o.insecureRegistries, "insecure-registry", nil, "registry (host[:port]) to speak plain HTTP with; may be repeated")
	f.Var(&o.generic, "generic-resource", "what tasks can reserve here beside CPU and memory, KIND=N or KIND=NAME,NAME; may be repeated")
	f.StringSliceVar(&o.cdiDirs, "cdi-spec-dir", devices.DefaultDirs, "directory of CDI spec files: the devices that they describe can be reserved, as VENDOR/CLASS; may be repeated")
	f.StringSliceVar(&o.engineLabels, "engine-label", nil, "label of this host, KEY=VALUE, for constraints on engine.labels.KEY once it is accepted (swarmctl node update --accept); may be repeated")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&o.logFormat, "log-format", "text", "text or json")
}

// resolve fills flags that were not given from the environment, then from the configuration file, and checks all.
func (o *options) resolve(flags *pflag.FlagSet) error {
	if v, ok := os.LookupEnv("SWARMD_CONFIG"); ok && !flags.Changed("config") {
		if err := flags.Set("config", v); err != nil {
			return err
		}
	}
	file, err := readConfig(o.config, flags.Changed("config"))
	if err != nil {
		return err
	}
	var errs []error
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" || f.Name == "version" || f.Name == "config" {
			return
		}
		given := f.Changed
		env := "SWARMD_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if v, ok := os.LookupEnv(env); ok && !given {
			given = true
			if err := f.Value.Set(v); err != nil {
				errs = append(errs, fmt.Errorf("environment variable %s: %w", env, err))
			}
		}
		if v, ok := file[f.Name]; ok && !given {
			if err := f.Value.Set(v); err != nil {
				errs = append(errs, fmt.Errorf("%s: %s: %w", o.config, f.Name, err))
			}
		}
		delete(file, f.Name)
	})
	for name := range file {
		errs = append(errs, fmt.Errorf("%s: unknown setting %q; `swarmd --help` lists the flags, which are the settings", o.config, name))
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(append(errs, o.check())...)
}

// readConfig returns the file's settings as the text that the flags of the same names take.
func readConfig(path string, mustExist bool) (map[string]string, error) {
	var raw map[string]any
	_, err := toml.DecodeFile(path, &raw)
	if errors.Is(err, fs.ErrNotExist) && !mustExist {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read configuration %s: %w", path, err)
	}
	out := map[string]string{}
	for k, v := range raw {
		switch v := v.(type) {
		case []any:
			var parts []string
			for _, p := range v {
				parts = append(parts, fmt.Sprint(p))
			}
			out[k] = strings.Join(parts, ",")
		case map[string]any:
			return nil, fmt.Errorf("read configuration %s: %q is a table; settings are plain values named like the flags", path, k)
		default:
			out[k] = fmt.Sprint(v)
		}
	}
	return out, nil
}

func (o *options) check() error {
	var errs []error
	for flag, dir := range map[string]string{"--config-dir": o.configDir, "--data-dir": o.dataDir, "--run-dir": o.runDir, "--cgroup-parent": o.cgroupParent} {
		if !filepath.IsAbs(dir) {
			errs = append(errs, fmt.Errorf("%s %q: want an absolute path", flag, dir))
		}
	}
	if _, port, err := net.SplitHostPort(o.listenAddr); err != nil || port == "" {
		errs = append(errs, fmt.Errorf("--listen-addr %q: want host:port, for example 0.0.0.0:2377", o.listenAddr))
	}
	if o.gossipAddr != "" {
		if at, err := netip.ParseAddrPort(o.gossipAddr); err != nil || at.Port() == 0 {
			errs = append(errs, fmt.Errorf("--gossip-addr %q: want IP:port, for example 0.0.0.0:7946", o.gossipAddr))
		}
	}
	if _, err := o.logger(io.Discard); err != nil {
		errs = append(errs, err)
	}
	errs = append(errs, o.checkNode())
	return errors.Join(errs...)
}

func (o *options) logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return nil, fmt.Errorf("--log-level %q: want debug, info, warn or error", o.logLevel)
	}
	opts := &slog.HandlerOptions{Level: level}
	switch o.logFormat {
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return nil, fmt.Errorf("--log-format %q: want text or json", o.logFormat)
}
