package swarmpb

import "google.golang.org/protobuf/proto"

// HostPorts are the ports that each task binds on its host. They belong to the task's template.
func (x *ServiceSpec) HostPorts() []*PortConfig {
	var ports []*PortConfig
	for _, port := range x.GetEndpoint().GetPorts() {
		if port.GetMode() == PublishMode_PUBLISH_MODE_HOST {
			ports = append(ports, port)
		}
	}
	return ports
}

// TemplateChanged tells whether tasks made from old must be replaced to become tasks of new: the task's spec
// (with the count of forced updates) or its host ports differ. Replicas, labels of the service, update
// settings and ingress ports do not count.
func TemplateChanged(old, new *ServiceSpec) bool {
	if !proto.Equal(old.GetTask(), new.GetTask()) {
		return true
	}
	a, b := old.HostPorts(), new.HostPorts()
	if len(a) != len(b) {
		return true
	}
	for i := range a {
		if !proto.Equal(a[i], b[i]) {
			return true
		}
	}
	return false
}
