package registries

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// file is registries.toml.
type file struct {
	Registry []entry `toml:"registry"`
}

type entry struct {
	Host      string   `toml:"host"`
	Mirrors   []string `toml:"mirrors"`
	CA        string   `toml:"ca"`
	PlainHTTP bool     `toml:"plain_http"`
	Insecure  bool     `toml:"insecure"`
}

// parse reads the file's text; relative paths in it are from its directory. Every error names the file and the line.
func parse(path string, body []byte) (*Set, error) {
	if len(body) > maxFileBytes {
		return nil, fmt.Errorf("%s: it has %d bytes; at most %d are read", path, len(body), maxFileBytes)
	}
	var f file
	if err := toml.NewDecoder(bytes.NewReader(body)).DisallowUnknownFields().Decode(&f); err != nil {
		return nil, syntaxError(path, err)
	}
	at, single := linesOf(body)
	if single > 0 {
		return nil, fmt.Errorf("%s:%d: a registry begins with [[registry]], in two brackets", path, single)
	}
	if len(f.Registry) > maxRegistries {
		return nil, fmt.Errorf("%s:%d: %d registries; at most %d are read", path, at.of(maxRegistries, ""), len(f.Registry), maxRegistries)
	}
	set := &Set{byHost: map[string]Registry{}}
	var errs []error
	for i, e := range f.Registry {
		wrong := func(key, format string, args ...any) {
			errs = append(errs, fmt.Errorf("%s:%d: %s", path, at.of(i, key), fmt.Sprintf(format, args...)))
		}
		e.check(wrong)
		if _, twice := set.byHost[e.Host]; twice {
			wrong("host", "registry %q is named twice; write all of it in one place", e.Host)
		}
		r := Registry{Host: e.Host, Mirrors: e.Mirrors, PlainHTTP: e.PlainHTTP, Insecure: e.Insecure}
		if e.CA != "" {
			if r.CA = e.CA; !filepath.IsAbs(r.CA) {
				r.CA = filepath.Join(filepath.Dir(path), e.CA)
			}
			if err := checkCA(r.CA); err != nil {
				wrong("ca", "%s", err)
			}
		}
		set.byHost[e.Host] = r
	}
	return set, errors.Join(errs...)
}

func (e entry) check(wrong func(key, format string, args ...any)) {
	if e.Host == "" {
		wrong("host", "the registry has no host; write host = \"registry.local:5000\", as in the images' references")
	} else if problem := checkHost(e.Host); problem != "" {
		wrong("host", "host %q: %s", e.Host, problem)
	}
	if len(e.Mirrors) > maxMirrors {
		wrong("mirrors", "%d mirrors; at most %d are asked", len(e.Mirrors), maxMirrors)
	}
	for i, mirror := range e.Mirrors {
		if problem := checkMirror(mirror, e.Host); problem != "" {
			wrong("mirrors", "mirror %q: %s", mirror, problem)
		} else if slices.Contains(e.Mirrors[:i], mirror) {
			wrong("mirrors", "mirror %q is named twice", mirror)
		}
	}
	if e.PlainHTTP && (e.CA != "" || e.Insecure) {
		wrong("plain_http", "plain_http means no TLS, where ca and insecure mean nothing; keep one of them")
	}
}

// checkCA finds out at the start what a pull would find out at night.
func checkCA(path string) error {
	pem, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read ca: %w", err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(pem) {
		return fmt.Errorf("ca %s: it holds no certificate in PEM", path)
	}
	return nil
}

func syntaxError(path string, err error) error {
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) {
		var errs []error
		for i := range unknown.Errors {
			e := &unknown.Errors[i]
			row, _ := e.Position()
			key := e.Key()
			errs = append(errs, fmt.Errorf("%s:%d: unknown setting %q; a [[registry]] has host, mirrors, ca, plain_http and insecure", path, row, key[len(key)-1]))
		}
		return errors.Join(errs...)
	}
	var e *toml.DecodeError
	if errors.As(err, &e) {
		row, _ := e.Position()
		return fmt.Errorf("%s:%d: %w", path, row, err)
	}
	return fmt.Errorf("%s: %w", path, err)
}

// lines are where the settings of each registry stand.
type lines []map[string]int

// of is the line of a registry's setting, of the registry itself where that is missing, or 1.
func (l lines) of(registry int, key string) int {
	if registry >= len(l) {
		return 1
	}
	if n, ok := l[registry][key]; ok {
		return n
	}
	return l[registry][""]
}

// linesOf finds the lines of a text that is known to be TOML; single is the first line where a registry is not begun as
// one of many, 0 = nowhere: the decoder would take that for none.
func linesOf(body []byte) (out lines, single int) {
	var p unstable.Parser
	p.Reset(body)
	within := false
	for p.NextExpression() {
		e := p.Expression()
		key := e.Key()
		if !key.Next() {
			continue
		}
		name, line := string(key.Node().Data), p.Shape(key.Node().Raw).Start.Line
		switch e.Kind {
		case unstable.ArrayTable:
			if within = name == "registry"; within {
				out = append(out, map[string]int{"": line})
			}
		case unstable.Table:
			within = false
			if single == 0 {
				single = line
			}
		case unstable.KeyValue:
			if within {
				out[len(out)-1][name] = line
			} else if single == 0 {
				single = line
			}
		}
	}
	return out, single
}
