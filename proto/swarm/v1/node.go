package swarmpb

import "maps"

// Facts is the part of what a node says of itself that may attract tasks, in a copy.
func (x *NodeDescription) Facts() *NodeFacts {
	facts := &NodeFacts{Hostname: x.GetHostname(), EngineLabels: maps.Clone(x.GetEngine().GetLabels())}
	if x.GetPlatform() != nil {
		facts.Platform = Clone(x.GetPlatform())
	}
	if x.GetResources() != nil {
		facts.Resources = Clone(x.GetResources())
	}
	return facts
}
