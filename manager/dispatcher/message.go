package dispatcher

import (
	"iter"
	"log/slog"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// message is a change as it is sent: the bytes that it takes in an AssignmentsResponse. What many nodes are told is made
// once; all sessions share it and nobody writes to it. Two that say the same are equal.
type message []byte

var fieldChanges = (&swarmpb.AssignmentsResponse{}).ProtoReflect().Descriptor().Fields().ByName("changes").Number()

// encode makes a message. What rows hold came out of messages, so that there is nothing that cannot be encoded.
func encode(c *swarmpb.AssignmentChange) message {
	options := proto.MarshalOptions{Deterministic: true}
	size := options.Size(c)
	out := make(message, 0, size+protowire.SizeTag(fieldChanges)+protowire.SizeVarint(uint64(size)))
	out = protowire.AppendTag(out, fieldChanges, protowire.BytesType)
	out = protowire.AppendVarint(out, uint64(size))
	options.UseCachedSize = true
	out, err := options.MarshalAppend(out, c)
	if err != nil {
		slog.Error("a change cannot be told to nodes", "error", err)
		return nil
	}
	return out
}

// chunks cuts a set into responses of bounded size. A full set has at least one; a set without changes otherwise has none.
func chunks(base, version uint64, parts [][]message) iter.Seq[*swarmpb.AssignmentsResponse] {
	return func(yield func(*swarmpb.AssignmentsResponse) bool) {
		parts = slices.DeleteFunc(slices.Clone(parts), func(part []message) bool { return len(part) == 0 })
		if len(parts) == 0 && base != 0 {
			return
		}
		for {
			chunk := &swarmpb.AssignmentsResponse{BaseVersion: base, Version: version}
			if len(parts) > 0 {
				n := fitting(parts[0], maxChunkChanges, func(m message) int { return len(m) })
				// What a message does not know it sends as it is: so nothing is encoded again for each node.
				chunk.ProtoReflect().SetUnknown(protoreflect.RawFields(slices.Concat(parts[0][:n]...)))
				if parts[0] = parts[0][n:]; len(parts[0]) == 0 {
					parts = parts[1:]
				}
			}
			chunk.LastChunk = len(parts) == 0
			if !yield(chunk) || chunk.LastChunk {
				return
			}
		}
	}
}
