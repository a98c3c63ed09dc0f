package main

import (
	"bufio"
	"encoding/csv"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/google/shlex"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// cpuValue is a number of CPUs in billionths, read as a decimal: 0.5.
type cpuValue int64

func (v *cpuValue) String() string {
	if *v == 0 {
		return ""
	}
	return cpus(int64(*v))
}
func (*cpuValue) Type() string { return "decimal" }
func (v *cpuValue) Set(s string) error {
	r, ok := new(big.Rat).SetString(s)
	if !ok || strings.ContainsAny(s, "/eE") {
		return errors.New("want a number of CPUs such as 0.5")
	}
	nano := r.Mul(r, big.NewRat(1e9, 1))
	if !nano.IsInt() || !nano.Num().IsInt64() {
		return errors.New("want a number of CPUs with at most nine digits after the point")
	}
	*v = cpuValue(nano.Num().Int64())
	return nil
}

// bytesValue is a size, read with a unit: 200m, 1g.
type bytesValue int64

func (v *bytesValue) String() string {
	if *v == 0 {
		return ""
	}
	return memory(int64(*v))
}
func (*bytesValue) Type() string { return "bytes" }
func (v *bytesValue) Set(s string) error {
	n, err := units.RAMInBytes(s)
	if err != nil {
		return errors.New("want a size with b, k, m or g, such as 200m")
	}
	*v = bytesValue(n)
	return nil
}

// splitWords splits as a shell does.
func splitWords(s string) ([]string, error) {
	words, err := shlex.Split(s)
	if err != nil {
		return nil, fmt.Errorf("%q: a quote or a backslash has no end", s)
	}
	return words, nil
}

func readEnvFile(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("--env-file: %w", err)
	}
	defer f.Close()
	var out []string
	s := bufio.NewScanner(f)
	for n := 1; s.Scan(); n++ {
		line := strings.TrimSpace(s.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if strings.HasPrefix(line, "=") {
			return nil, fmt.Errorf("--env-file %s: line %d has no name before the =", path, n)
		}
		out = append(out, line)
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("--env-file %s: %w", path, err)
	}
	return out, nil
}

// editEnv changes NAME=VALUE variables; a NAME alone takes the value of this process's environment, and is left
// out when there is none.
func editEnv(l listFlag, to *[]string) error {
	has := func(name string) int {
		return slices.IndexFunc(*to, func(v string) bool { n, _, _ := strings.Cut(v, "="); return n == name })
	}
	for _, rm := range l.rm {
		i := has(rm)
		if i < 0 {
			return fmt.Errorf("--env-rm %s: the service has no such variable", rm)
		}
		*to = slices.Delete(*to, i, i+1)
	}
	for _, add := range l.add {
		name, _, valued := strings.Cut(add, "=")
		if name == "" {
			return fmt.Errorf("--env %q: want NAME=VALUE", add)
		}
		if !valued {
			value, ok := os.LookupEnv(name)
			if !ok {
				continue
			}
			add = name + "=" + value
		}
		if i := has(name); i >= 0 {
			(*to)[i] = add
		} else {
			*to = append(*to, add)
		}
	}
	return nil
}

func editPairs(flag string, l listFlag, to *map[string]string) error {
	out := maps.Clone(*to)
	for _, rm := range l.rm {
		if _, ok := out[rm]; !ok {
			return fmt.Errorf("--%s-rm %s: the service has no such label", flag, rm)
		}
		delete(out, rm)
	}
	for _, add := range l.add {
		name, value, _ := strings.Cut(add, "=")
		if name == "" {
			return fmt.Errorf("--%s %q: want NAME=VALUE", flag, add)
		}
		if out == nil {
			out = map[string]string{}
		}
		out[name] = value
	}
	*to = out
	return nil
}

// keyValues reads key=value,key=value; a value with commas is quoted as in CSV.
func keyValues(s string) ([][2]string, error) {
	parts, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return nil, errors.New("want key=value,key=value")
	}
	var out [][2]string
	for _, p := range parts {
		k, v, _ := strings.Cut(p, "=")
		out = append(out, [2]string{strings.ToLower(strings.TrimSpace(k)), v})
	}
	return out, nil
}

// parseAll reads the values of a flag. What they say replaces what the service had in the same place, but not one
// another: the same place twice in one command is a mistake that the server names.
func parseAll[T any](flag string, values []string, parse func(string) (T, error)) ([]T, error) {
	var out []T
	for _, value := range values {
		v, err := parse(value)
		if err != nil {
			return nil, fmt.Errorf("--%s %q: %w", flag, value, err)
		}
		out = append(out, v)
	}
	return out, nil
}

// parseMount reads type=bind,source=/src,target=/dst,readonly and the like.
func parseMount(s string) (*swarmpb.Mount, error) {
	fields, err := keyValues(s)
	if err != nil {
		return nil, err
	}
	m := &swarmpb.Mount{Type: swarmpb.MountType_MOUNT_TYPE_VOLUME}
	for _, f := range fields {
		switch f[0] {
		case "type":
			m.Type, err = swarmpb.ParseMountType(f[1])
		case "source", "src":
			m.Source = f[1]
		case "target", "dst", "destination":
			m.Target = f[1]
		case "readonly", "ro":
			m.ReadOnly, err = boolean(f)
		case "bind-propagation":
			m.BindPropagation = f[1]
		case "bind-create-src":
			m.BindCreateSource, err = boolean(f)
		case "volume-nocopy":
			m.VolumeNoCopy, err = boolean(f)
		case "tmpfs-size":
			var size bytesValue
			if err = size.Set(f[1]); err != nil {
				err = fmt.Errorf("tmpfs-size %q: %w", f[1], err)
			}
			m.TmpfsSizeBytes = int64(size)
		case "tmpfs-mode":
			var mode uint64
			if mode, err = strconv.ParseUint(f[1], 8, 32); err != nil {
				err = fmt.Errorf("tmpfs-mode %q: want octal digits, such as 1777", f[1])
			}
			m.TmpfsMode = uint32(mode)
		default:
			err = fmt.Errorf("%q is not known; use type, source, target, readonly, bind-propagation, bind-create-src, volume-nocopy, tmpfs-size, tmpfs-mode", f[0])
		}
		if err != nil {
			return nil, err
		}
	}
	if m.Target == "" {
		return nil, errors.New("the path in the container is missing; add target=/path")
	}
	return m, nil
}

// boolean reads a field; the key alone means true.
func boolean(field [2]string) (bool, error) {
	if field[1] == "" {
		return true, nil
	}
	v, err := strconv.ParseBool(field[1])
	if err != nil {
		return false, fmt.Errorf("%s %q: want true or false", field[0], field[1])
	}
	return v, nil
}

func editMounts(l listFlag, c *swarmpb.ContainerSpec) error {
	at := func(target string) int {
		return slices.IndexFunc(c.Mounts, func(m *swarmpb.Mount) bool { return m.Target == target })
	}
	for _, rm := range l.rm {
		i := at(rm)
		if i < 0 {
			return fmt.Errorf("--mount-rm %s: nothing is mounted there", rm)
		}
		c.Mounts = slices.Delete(c.Mounts, i, i+1)
	}
	added, err := parseAll("mount", l.add, parseMount)
	if err != nil {
		return err
	}
	c.Mounts = append(slices.DeleteFunc(c.Mounts, func(m *swarmpb.Mount) bool {
		return slices.ContainsFunc(added, func(n *swarmpb.Mount) bool { return n.Target == m.Target })
	}), added...)
	return nil
}

// editCapabilities moves capabilities to one list, out of the other: adding one that was dropped undoes that.
func editCapabilities(names []string, to, from *[]string) {
	for _, name := range names {
		same := func(other string) bool { return capability(other) == capability(name) }
		before := len(*from)
		*from = slices.DeleteFunc(*from, same)
		if len(*from) == before && !slices.ContainsFunc(*to, same) {
			*to = append(*to, name)
		}
	}
}

func capability(name string) string { return strings.TrimPrefix(strings.ToUpper(name), "CAP_") }
