package main

import (
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec that ownTasks goes without
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// ownTasks reads of a set what a simulated worker minds: its own tasks. What it is told of the other nodes comes over the
// wire like the rest, and is then passed over, so that the machine's time goes to the managers: each of thousands of real
// workers would read it on a machine of its own.
type ownTasks struct{}

// Name is that of what goes over the wire.
func (ownTasks) Name() string { return "proto" }

func (ownTasks) Marshal(v any) (mem.BufferSlice, error) {
	return encoding.GetCodecV2("proto").Marshal(v)
}

const (
	fieldChanges    = 4 // of AssignmentsResponse
	fieldTask       = 1 // of AssignmentChange
	fieldRemoveTask = 4
)

func (ownTasks) Unmarshal(data mem.BufferSlice, v any) error {
	response, ok := v.(*swarmpb.AssignmentsResponse)
	if !ok {
		return encoding.GetCodecV2("proto").Unmarshal(data, v)
	}
	whole := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer whole.Free()
	var own []byte
	for rest := whole.ReadOnlyData(); len(rest) > 0; {
		number, _, n := protowire.ConsumeField(rest)
		if n < 0 {
			return protowire.ParseError(n)
		}
		if number != fieldChanges || isOwn(rest[:n]) {
			own = append(own, rest[:n]...)
		}
		rest = rest[n:]
	}
	return proto.Unmarshal(own, response)
}

// isOwn tells whether a change, a field with its tag, is about a task of the worker.
func isOwn(field []byte) bool {
	_, _, tag := protowire.ConsumeTag(field)
	change, _ := protowire.ConsumeBytes(field[tag:])
	number, _, _ := protowire.ConsumeTag(change)
	return number == fieldTask || number == fieldRemoveTask
}
