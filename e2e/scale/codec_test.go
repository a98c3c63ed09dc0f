package main

import (
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func TestOwnTasks_SetOfEverything_KeepsTasksAndTheSetsVersions(t *testing.T) {
	task := &swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_Task{Task: &swarmpb.AssignedTask{Id: "t1"}}}
	gone := &swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_RemoveTask{RemoveTask: "t2"}}
	peer := &swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_Peer{Peer: &swarmpb.Peer{NodeId: "n1"}}}
	config := &swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_NodeConfig{NodeConfig: &swarmpb.NodeConfig{Number: 7}}}
	sent := &swarmpb.AssignmentsResponse{BaseVersion: 3, Version: 9, LastChunk: true, Changes: []*swarmpb.AssignmentChange{peer, task, config, gone, peer}}
	data, err := proto.Marshal(sent)
	if err != nil {
		t.Fatal(err)
	}
	got, want := &swarmpb.AssignmentsResponse{}, swarmpb.Clone(sent)
	want.Changes = []*swarmpb.AssignmentChange{task, gone}
	cut := len(data) / 2 // as it comes, in pieces
	if err := (ownTasks{}).Unmarshal(mem.BufferSlice{mem.SliceBuffer(data[:cut]), mem.SliceBuffer(data[cut:])}, got); err != nil || !proto.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
	if err := (ownTasks{}).Unmarshal(mem.BufferSlice{mem.SliceBuffer(data[:cut])}, got); err == nil {
		t.Error("half a message was taken")
	}
}
