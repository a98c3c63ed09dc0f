package worker

import (
	"fmt"
	"strconv"
	"strings"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// fields are what {{...}} in a spec may name.
type fields map[string]string

func fieldsOf(nodeID, hostname string, platform *swarmpb.Platform, t *swarmpb.AssignedTask) fields {
	slot := strconv.FormatUint(t.GetSlot(), 10)
	if t.GetGlobal() {
		slot = nodeID // a global task's slot is its node
	}
	return fields{
		".Service.ID": t.GetServiceId(), ".Service.Name": t.GetServiceName(),
		".Node.ID": nodeID, ".Node.Hostname": hostname,
		".Node.Platform.OS": platform.GetOs(), ".Node.Platform.Architecture": platform.GetArchitecture(),
		".Task.ID": t.GetId(), ".Task.Name": taskName(nodeID, t), ".Task.Slot": slot,
	}
}

// taskName is the container's name in the user's eyes: web.1.<task ID>.
func taskName(nodeID string, t *swarmpb.AssignedTask) string {
	if !t.GetGlobal() {
		nodeID = ""
	}
	return swarmpb.TaskName(t.GetServiceName(), t.GetSlot(), nodeID) + "." + t.GetId()
}

// expand replaces each {{.Field}} in text; an unknown field is an error that names what there is.
func (f fields) expand(text string) (string, error) {
	var out strings.Builder
	for {
		before, rest, found := strings.Cut(text, "{{")
		out.WriteString(before)
		if !found {
			return out.String(), nil
		}
		inside, after, closed := strings.Cut(rest, "}}")
		if !closed {
			return "", fmt.Errorf("template %q: }} is missing", "{{"+rest)
		}
		name := strings.TrimSpace(inside)
		value, known := f[name]
		if !known {
			return "", fmt.Errorf("template {{%s}}: no such field; use one of .Service.ID, .Service.Name, .Node.ID, .Node.Hostname, "+
				".Node.Platform.OS, .Node.Platform.Architecture, .Task.ID, .Task.Name, .Task.Slot", name)
		}
		out.WriteString(value)
		text = after
	}
}

// expandSpec replaces the fields in hostname, environment and mounts.
func (f fields) expandSpec(c *swarmpb.ContainerSpec) (*swarmpb.ContainerSpec, error) {
	c = swarmpb.Clone(c)
	replace := func(what string, text *string) error {
		value, err := f.expand(*text)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		*text = value
		return nil
	}
	if err := replace("hostname", &c.Hostname); err != nil {
		return nil, err
	}
	for i := range c.Env {
		if err := replace("env", &c.Env[i]); err != nil {
			return nil, err
		}
	}
	for _, m := range c.Mounts {
		if err := replace("mount source", &m.Source); err != nil {
			return nil, err
		}
		if err := replace("mount target", &m.Target); err != nil {
			return nil, err
		}
	}
	return c, nil
}
