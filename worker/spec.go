package worker

import (
	"fmt"
	"strings"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/network"
	"github.com/swarmd/swarmd/worker/runtime"
)

// shortID is the length of the hostname that is made of a task's ID.
const shortID = 12

// specOf is the container of a task. An error is the user's to mend.
func (f *fleet) specOf(assigned *swarmpb.AssignedTask, template *swarmpb.AssignedTemplate, at network.Attachment) (runtime.Spec, error) {
	task := template.GetSpec()
	if task.GetContainer().GetImage() == "" {
		return runtime.Spec{}, fmt.Errorf("the service's template %d names no image", assigned.GetTemplateVersion())
	}
	container, err := f.fieldsOf(assigned).expandSpec(task.GetContainer())
	if err != nil {
		return runtime.Spec{}, err
	}
	hostname := hostnameOf(assigned, container.GetHostname())
	spec := runtime.Spec{
		ID: assigned.GetId(), Image: container.GetImage(), Digest: container.GetImageDigest(),
		Container: container, Resources: task.GetResources(), Labels: f.labelsOf(assigned),
		Env: genericEnv(assigned.GetGeneric()), Devices: devicesOf(assigned.GetGeneric()),
		Hostname: hostname, Namespace: at.Namespace, ResolvConf: at.ResolvConf, Inherits: assigned.GetTakesVolumes() && assigned.GetReplaces() != "",
	}
	if at.Address.IsValid() {
		spec.Hosts = hostsFile(at, hostname, container.GetHosts())
	}
	return spec, nil
}

// fieldsOf are what a task's spec may name.
func (f *fleet) fieldsOf(assigned *swarmpb.AssignedTask) fields {
	return fieldsOf(f.cfg.NodeID, f.cfg.Hostname, platform(), assigned)
}

// hostnameOf is the container's hostname: the one that was asked for, or one made of the task's ID.
func hostnameOf(assigned *swarmpb.AssignedTask, asked string) string {
	if asked != "" {
		return asked
	}
	return assigned.GetId()[:min(shortID, len(assigned.GetId()))]
}

// hostsFile is the content of a container's /etc/hosts. Its hostname stands for its addresses in its networks, as what
// looks itself up tells its peers where to find it, and they cannot reach it over the uplink; that address has the
// hostname where there are no networks. Extra are lines of the user.
func hostsFile(at network.Attachment, hostname string, extra []string) string {
	var out strings.Builder
	out.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	line := func(address string) {
		if address != "" {
			out.WriteString(address + "\t" + hostname + "\n")
		}
	}
	for _, a := range at.Networks {
		line(a.GetAddress())
		line(a.GetAddress6())
	}
	if len(at.Networks) == 0 {
		line(at.Address.String())
		if at.Address6.IsValid() {
			line(at.Address6.String())
		}
	}
	for _, entry := range extra {
		if fields := strings.Fields(entry); len(fields) > 1 {
			out.WriteString(fields[0] + "\t" + strings.Join(fields[1:], " ") + "\n")
		}
	}
	return out.String()
}

// labelsOf are the labels that Docker Swarm gives its containers; a user's cannot override them.
func (f *fleet) labelsOf(t *swarmpb.AssignedTask) map[string]string {
	return map[string]string{
		"com.docker.swarm.task": "", "com.docker.swarm.task.id": t.GetId(), "com.docker.swarm.task.name": taskName(f.cfg.NodeID, t),
		"com.docker.swarm.node.id": f.cfg.NodeID, "com.docker.swarm.service.id": t.GetServiceId(), "com.docker.swarm.service.name": t.GetServiceName(),
	}
}

// drainOf is how long a container's connections have to end by themselves.
func drainOf(c *swarmpb.ContainerSpec) time.Duration {
	if c.GetDrainTimeout() == nil {
		return graceOf(c)
	}
	return max(0, c.GetDrainTimeout().AsDuration())
}

// graceOf is how long a container has to end by itself.
func graceOf(c *swarmpb.ContainerSpec) time.Duration {
	if c.GetStopGracePeriod() == nil {
		return defaultGrace
	}
	return max(0, c.GetStopGracePeriod().AsDuration())
}
