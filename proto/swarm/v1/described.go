package swarmpb

import (
	"regexp"
	"strings"
)

// Bounds of the names of generic resources' instances: of all that one node has, and of one name in bytes.
const (
	MaxGenericInstances = 512
	maxGenericInstance  = 128
)

// genericInstance is a name as devices have it: 0, GPU-8932f937, 1:0, mig1.2.
var genericInstance = regexp.MustCompile(`^[a-zA-Z0-9](?:[a-zA-Z0-9_.:-]*[a-zA-Z0-9])?$`)

// ValidGenericKind tells whether it may name a kind of generic resources: gpu, or example.com/gpu.
func ValidGenericKind(kind string) bool {
	return len(kind) <= maxGenericKind && genericKind.MatchString(kind)
}

// ValidGenericInstance tells whether it may name an instance of a kind.
func ValidGenericInstance(name string) bool {
	return len(name) <= maxGenericInstance && genericInstance.MatchString(name)
}

// GenericVariable is the environment variable that tells a container what it has of a kind, as in Docker Swarm:
// DOCKER_RESOURCE_GPU. What cannot be in a variable's name is an underscore.
func GenericVariable(kind string) string {
	return "DOCKER_RESOURCE_" + strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, kind)
}
