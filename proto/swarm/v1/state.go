package swarmpb

import (
	"fmt"
	"strings"
)

// Name is the state in the user's words, for example running.
func (x TaskState) Name() string {
	return nameOf(TaskState_name, int32(x), "TASK_STATE_")
}

// Ended tells whether nothing of the task runs any more, for good: COMPLETE and above.
func (x TaskState) Ended() bool {
	return x >= TaskState_TASK_STATE_COMPLETE
}

// Known tells whether this version knows the state; UNSPECIFIED is not one.
func (x TaskState) Known() bool {
	_, ok := TaskState_name[int32(x)]
	return ok && x != TaskState_TASK_STATE_UNSPECIFIED
}

// Name is the role in the user's words: worker or manager.
func (x NodeRole) Name() string {
	return nameOf(NodeRole_name, int32(x), "NODE_ROLE_")
}

// Name is the availability in the user's words: active, pause or drain.
func (x NodeAvailability) Name() string {
	return nameOf(NodeAvailability_name, int32(x), "NODE_AVAILABILITY_")
}

// Name is the state in the user's words: unknown, ready, down or disconnected.
func (x NodeState) Name() string {
	return nameOf(NodeState_name, int32(x), "NODE_STATE_")
}

// Name is the condition in the user's words: any, on-failure or none. Unspecified means any.
func (x RestartCondition) Name() string {
	if x == RestartCondition_RESTART_CONDITION_UNSPECIFIED {
		return "any"
	}
	return nameOf(RestartCondition_name, int32(x), "RESTART_CONDITION_")
}

// Name is the protocol in the user's words: tcp, udp or sctp. Unspecified means tcp.
func (x Protocol) Name() string {
	if x == Protocol_PROTOCOL_UNSPECIFIED {
		return "tcp"
	}
	return nameOf(Protocol_name, int32(x), "PROTOCOL_")
}

// Name is the mode in the user's words: ingress or host. Unspecified means ingress.
func (x PublishMode) Name() string {
	if x == PublishMode_PUBLISH_MODE_UNSPECIFIED {
		return "ingress"
	}
	return nameOf(PublishMode_name, int32(x), "PUBLISH_MODE_")
}

// Name is the source in the user's words: client or nat. Unspecified means client.
func (x PublishSource) Name() string {
	if x == PublishSource_PUBLISH_SOURCE_UNSPECIFIED {
		return "client"
	}
	return nameOf(PublishSource_name, int32(x), "PUBLISH_SOURCE_")
}

// Name is the affinity in the user's words: none or client-ip. Unspecified means none.
func (x Affinity) Name() string {
	if x == Affinity_AFFINITY_UNSPECIFIED {
		return "none"
	}
	return nameOf(Affinity_name, int32(x), "AFFINITY_")
}

// Name is the mode in the user's words: vip or dnsrr. Unspecified means vip.
func (x EndpointMode) Name() string {
	if x == EndpointMode_ENDPOINT_MODE_UNSPECIFIED {
		return "vip"
	}
	return nameOf(EndpointMode_name, int32(x), "ENDPOINT_MODE_")
}

// Name is the finding in the user's words: ok, warning or problem.
func (x Finding) Name() string {
	return nameOf(Finding_name, int32(x), "FINDING_")
}

// Name is the policy in the user's words: always, missing or never.
func (x PullPolicy) Name() string {
	return nameOf(PullPolicy_name, int32(x), "PULL_POLICY_")
}

// Name is the type in the user's words: bind, volume or tmpfs.
func (x MountType) Name() string {
	return nameOf(MountType_name, int32(x), "MOUNT_TYPE_")
}

// Name is the order in the user's words: stop-first or start-first. Unspecified means stop-first.
func (x UpdateOrder) Name() string {
	if x == UpdateOrder_UPDATE_ORDER_UNSPECIFIED {
		return "stop-first"
	}
	return nameOf(UpdateOrder_name, int32(x), "UPDATE_ORDER_")
}

// Name is the action in the user's words: pause, continue or rollback. Unspecified means pause.
func (x FailureAction) Name() string {
	if x == FailureAction_FAILURE_ACTION_UNSPECIFIED {
		return "pause"
	}
	return nameOf(FailureAction_name, int32(x), "FAILURE_ACTION_")
}

// Name is the reason in the user's words: drain, constraint or rebalance.
func (x MoveReason) Name() string {
	return nameOf(MoveReason_name, int32(x), "MOVE_REASON_")
}

// Name is the state in the user's words, with underscores as Docker writes it: updating, rollback_started.
func (x UpdateState) Name() string {
	return strings.ReplaceAll(nameOf(UpdateState_name, int32(x), "UPDATE_STATE_"), "-", "_")
}

// Name is the table as messages call its rows: task, task placement.
func (x Table) Name() string {
	return strings.ReplaceAll(nameOf(Table_name, int32(x), "TABLE_"), "-", " ")
}

// ParseNodeRole reads worker or manager.
func ParseNodeRole(s string) (NodeRole, error) {
	return parseName[NodeRole]("role", s, NodeRole_value, "NODE_ROLE_", NodeRole_name)
}

// ParseNodeAvailability reads active, pause or drain.
func ParseNodeAvailability(s string) (NodeAvailability, error) {
	return parseName[NodeAvailability]("availability", s, NodeAvailability_value, "NODE_AVAILABILITY_", NodeAvailability_name)
}

// ParseRestartCondition reads any, on-failure or none.
func ParseRestartCondition(s string) (RestartCondition, error) {
	return parseName[RestartCondition]("restart condition", s, RestartCondition_value, "RESTART_CONDITION_", RestartCondition_name)
}

// ParseProtocol reads tcp, udp or sctp.
func ParseProtocol(s string) (Protocol, error) {
	return parseName[Protocol]("protocol", s, Protocol_value, "PROTOCOL_", Protocol_name)
}

// ParsePublishMode reads ingress or host.
func ParsePublishMode(s string) (PublishMode, error) {
	return parseName[PublishMode]("publish mode", s, PublishMode_value, "PUBLISH_MODE_", PublishMode_name)
}

// ParsePublishSource reads client or nat.
func ParsePublishSource(s string) (PublishSource, error) {
	return parseName[PublishSource]("source", s, PublishSource_value, "PUBLISH_SOURCE_", PublishSource_name)
}

// ParseAffinity reads none or client-ip.
func ParseAffinity(s string) (Affinity, error) {
	return parseName[Affinity]("affinity", s, Affinity_value, "AFFINITY_", Affinity_name)
}

// ParseEndpointMode reads vip or dnsrr.
func ParseEndpointMode(s string) (EndpointMode, error) {
	return parseName[EndpointMode]("endpoint mode", s, EndpointMode_value, "ENDPOINT_MODE_", EndpointMode_name)
}

// ParsePullPolicy reads always, missing or never.
func ParsePullPolicy(s string) (PullPolicy, error) {
	return parseName[PullPolicy]("pull policy", s, PullPolicy_value, "PULL_POLICY_", PullPolicy_name)
}

// ParseMountType reads bind, volume or tmpfs.
func ParseMountType(s string) (MountType, error) {
	return parseName[MountType]("mount type", s, MountType_value, "MOUNT_TYPE_", MountType_name)
}

// ParseUpdateOrder reads stop-first or start-first.
func ParseUpdateOrder(s string) (UpdateOrder, error) {
	return parseName[UpdateOrder]("update order", s, UpdateOrder_value, "UPDATE_ORDER_", UpdateOrder_name)
}

// ParseFailureAction reads pause, continue or rollback.
func ParseFailureAction(s string) (FailureAction, error) {
	return parseName[FailureAction]("failure action", s, FailureAction_value, "FAILURE_ACTION_", FailureAction_name)
}

// nameOf is the user's word for an enum's value: without the prefix, in lower case, with dashes.
func nameOf(names map[int32]string, value int32, prefix string) string {
	name, ok := names[value]
	if !ok {
		return fmt.Sprintf("unknown(%d)", value)
	}
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(name, prefix)), "_", "-")
}

// parseName is the inverse of nameOf; unspecified is not a word.
func parseName[E ~int32](what, s string, values map[string]int32, prefix string, names map[int32]string) (E, error) {
	value, ok := values[prefix+strings.ReplaceAll(strings.ToUpper(s), "-", "_")]
	if !ok || value == 0 || strings.Contains(s, "_") {
		var words []string
		// Enums are small and dense: walking their numbers keeps the order without sorting.
		for n := int32(1); n < int32(len(names)); n++ {
			words = append(words, nameOf(names, n, prefix))
		}
		return 0, fmt.Errorf("%s %q: not known; use %s", what, s, strings.Join(words, ", "))
	}
	return E(value), nil
}
