package swarmpb

import (
	"fmt"
	"path"
)

const (
	// MaxPID is the highest process ID that Linux has.
	MaxPID = 1 << 22
	// MaxPathBytes bounds a path on a node.
	MaxPathBytes = 4095
	// maxNamespaceBytes bounds the kernel's name of a namespace.
	maxNamespaceBytes = 64
)

// IsAttachment tells whether the service stands for a container outside of services that is attached to a network.
func (x *ServiceSpec) IsAttachment() bool { return x.GetTask().GetGuest() != nil }

// AttachmentName is the name of the service that stands for an attachment: no service of a user's can have it.
func AttachmentName(network, name string) string { return network + "/" + name }

// Validate checks what a user wants to attach. Whether it is there only its node knows.
func (x *Guest) Validate() error {
	var p problems
	netns := x.GetNetns()
	const fix = "name it by the process ID that its engine shows (--pid), or by the file of its network namespace (--netns)"
	switch {
	case x.GetPid() == 0 && netns == "":
		p.add("container", "it is not named", fix)
	case x.GetPid() != 0 && netns != "":
		p.add("container", "it is named by a process and by a namespace", "give one of the two")
	case x.GetPid() > MaxPID:
		p.addf("pid", fix, "%d is no process ID", x.GetPid())
	case netns != "" && (!path.IsAbs(netns) || path.Clean(netns) != netns || hasNUL(netns) || len(netns) > MaxPathBytes):
		p.add(fmt.Sprintf("netns %.80q", netns), "it is not an absolute path without detours", "use one such as /run/netns/NAME")
	}
	if n := x.GetNamespace(); len(n) > maxNamespaceBytes || hasNUL(n) {
		p.add(fmt.Sprintf("namespace %.80q", n), "it is not a namespace as the kernel names it", "use one such as net:[4026532008], or leave it out")
	}
	return p.err()
}

// ValidateAliases checks names besides its own that something has in a network.
func ValidateAliases(network string, aliases []string) error {
	var p problems
	p.networks([]*NetworkAttachment{{Network: network, Aliases: aliases}})
	return p.err()
}
