package worker

import (
	"fmt"
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
	container, err := fieldsOf(f.cfg.NodeID, f.cfg.Hostname, platform(), assigned).expandSpec(task.GetContainer())
	if err != nil {
		return runtime.Spec{}, err
	}
	hostname := container.GetHostname()
	if hostname == "" {
		hostname = assigned.GetId()[:min(shortID, len(assigned.GetId()))]
	}
	spec := runtime.Spec{
		ID: assigned.GetId(), Image: container.GetImage(), Digest: container.GetImageDigest(),
		Container: container, Resources: task.GetResources(), Labels: f.labelsOf(assigned),
		Hostname: hostname, Namespace: at.Namespace, ResolvConf: at.ResolvConf,
	}
	if at.Address.IsValid() {
		spec.Hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" + at.Address.String() + "\t" + hostname + "\n"
	}
	return spec, nil
}

// labelsOf are the labels that Docker Swarm gives its containers; a user's cannot override them.
func (f *fleet) labelsOf(t *swarmpb.AssignedTask) map[string]string {
	return map[string]string{
		"com.docker.swarm.task": "", "com.docker.swarm.task.id": t.GetId(), "com.docker.swarm.task.name": taskName(f.cfg.NodeID, t),
		"com.docker.swarm.node.id": f.cfg.NodeID, "com.docker.swarm.service.id": t.GetServiceId(), "com.docker.swarm.service.name": t.GetServiceName(),
	}
}

// graceOf is how long a container has to end by itself.
func graceOf(c *swarmpb.ContainerSpec) time.Duration {
	if c.GetStopGracePeriod() == nil {
		return defaultGrace
	}
	return max(0, c.GetStopGracePeriod().AsDuration())
}
