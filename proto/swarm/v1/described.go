package swarmpb

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Bounds of the names of generic resources' instances: of all that one node has, and of one name in bytes.
const (
	MaxGenericInstances = 512
	maxGenericInstance  = 128
)

// Bounds of what a node says of its engine.
const (
	MaxEngineLabels     = 64
	MaxEngineLabelBytes = 512
)

// ValidEngineLabel tells whether a node may say a label of itself.
func ValidEngineLabel(key, value string) bool {
	printable := func(s string) bool {
		return len(s) <= MaxEngineLabelBytes && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
	}
	return key != "" && printable(key) && printable(value)
}

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
// DOCKER_RESOURCE_NVIDIA-GPU. The dots and the slash of a kind of devices are underscores: DOCKER_RESOURCE_EXAMPLE_COM_GPU.
func GenericVariable(kind string) string {
	return "DOCKER_RESOURCE_" + strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-':
			return r
		}
		return '_'
	}, kind)
}
