package store

import (
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// fill sets every field of a message, and one that this version does not know.
func fill(t *testing.T, m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		switch field.Kind() {
		case protoreflect.StringKind:
			m.Set(field, protoreflect.ValueOfString("text"))
		case protoreflect.Uint64Kind:
			m.Set(field, protoreflect.ValueOfUint64(uint64(field.Number())))
		case protoreflect.Int64Kind:
			m.Set(field, protoreflect.ValueOfInt64(int64(field.Number())))
		case protoreflect.BoolKind:
			m.Set(field, protoreflect.ValueOfBool(true))
		case protoreflect.EnumKind:
			m.Set(field, protoreflect.ValueOfEnum(10))
		case protoreflect.MessageKind:
			fill(t, m.Mutable(field).Message())
		default:
			t.Fatalf("field %s: set it here and copy it in compactTask", field.FullName())
		}
	}
	m.SetUnknown([]byte{0xc0, 0x3e, 0x05}) // field 1000 = 5
}

// TestCompactTask_EveryField_IsCopied fails for a field that a later version adds and forgets to copy.
func TestCompactTask_EveryField_IsCopied(t *testing.T) {
	task := new(swarmpb.Task)
	fill(t, task.ProtoReflect())
	if got := compactTask(task); !proto.Equal(got, task) {
		t.Fatalf("got %v, want %v", got, task)
	}
	task.Meta = nil
	if got := compactTask(task); !proto.Equal(got, task) {
		t.Fatalf("without a meta: got %v, want %v", got, task)
	}
}

// TestSetTaskState_TaskWithoutMeta_GetsOne: a snapshot may hold such a row.
func TestSetTaskState_TaskWithoutMeta_GetsOne(t *testing.T) {
	f := newFixture(t)
	f.apply(task("t", 1, 1, 1, ""))
	tx := &tx{View: f.store.View().fork(), strings: &f.store.strings}
	tx.index++
	bare := proto.CloneOf(f.store.View().Task("t"))
	bare.Meta = nil
	tx.set(swarmpb.Table_TABLE_TASK, Key{ID: "t"}, bare)
	f.store.current.Store(tx.View)
	f.apply(&swarmpb.Write{Op: &swarmpb.Write_SetTaskState{SetTaskState: &swarmpb.SetTaskState{TaskId: "t", Draining: true}}})
	want := &swarmpb.Meta{Version: f.store.View().Index(), CreatedAt: 7, UpdatedAt: 7}
	if got := f.store.View().Task("t"); !got.Draining || !proto.Equal(got.Meta, want) {
		t.Fatalf("got %v, want it draining with %v", got, want)
	}
}
