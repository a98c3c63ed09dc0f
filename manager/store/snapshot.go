package store

import (
	"bufio"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"

	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// snapshotFormat is the only format that this version writes, and the highest that it reads.
const snapshotFormat = 1

// ErrCorrupt: what should be a snapshot is not a whole and unchanged one.
var ErrCorrupt = errors.New("snapshot is corrupt")

// WriteSnapshot writes the version as a stream: a SnapshotHeader and the rows, each with its length as a varint
// before it, then the CRC-32C of all that, four bytes with the highest first. Equal versions make equal bytes.
func (v *View) WriteSnapshot(w io.Writer) error {
	buffered := bufio.NewWriterSize(w, 1<<16)
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	out := io.MultiWriter(buffered, sum)
	marshal := protodelim.MarshalOptions{MarshalOptions: proto.MarshalOptions{Deterministic: true}}
	header := &swarmpb.SnapshotHeader{Format: snapshotFormat, Index: v.index, Term: v.term}
	for range v.allRows {
		header.Rows++
	}
	if _, err := marshal.MarshalTo(out, header); err != nil {
		return fmt.Errorf("write snapshot header: %w", err)
	}
	for row := range v.allRows {
		if _, err := marshal.MarshalTo(out, row); err != nil {
			return fmt.Errorf("write snapshot: %s: %w", row.Key().Describe(), err)
		}
	}
	if _, err := buffered.Write(sum.Sum(nil)); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	if err := buffered.Flush(); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	return nil
}

// ReadSnapshot makes a store out of a stream that WriteSnapshot wrote, and derives anew all that is derived.
// Anything else is an error.
func ReadSnapshot(r io.Reader) (*Store, error) {
	in := &summedReader{in: bufio.NewReaderSize(r, 1<<16), sum: crc32.New(crc32.MakeTable(crc32.Castagnoli))}
	unmarshal := protodelim.UnmarshalOptions{MaxSize: MaxRowBytes}
	header := new(swarmpb.SnapshotHeader)
	if err := unmarshal.UnmarshalFrom(in, header); err != nil {
		return nil, corrupt("header: %w", err)
	}
	if header.Format != snapshotFormat {
		return nil, corrupt("format %d is not known; this version reads %d", header.Format, snapshotFormat)
	}
	s := New()
	t := &tx{View: s.View(), strings: &s.strings}
	t.index, t.term = header.Index, header.Term
	for n := range header.Rows {
		row := new(swarmpb.Row)
		if err := unmarshal.UnmarshalFrom(in, row); err != nil {
			return nil, corrupt("row %d of %d: %w", n+1, header.Rows, err)
		}
		if err := t.load(row); err != nil {
			return nil, corrupt("row %d of %d: %w", n+1, header.Rows, err)
		}
	}
	if err := in.checkSum(); err != nil {
		return nil, err
	}
	if err := t.View.Verify(); err != nil {
		return nil, corrupt("%w", err)
	}
	return newStore(t.View), nil
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("read snapshot: %w: %w", ErrCorrupt, fmt.Errorf(format, args...))
}

// summedReader sums up the bytes that are taken from it.
type summedReader struct {
	in  *bufio.Reader
	sum hash.Hash32
}

func (r *summedReader) Read(p []byte) (int, error) {
	n, err := r.in.Read(p)
	r.sum.Write(p[:n])
	return n, err
}

func (r *summedReader) ReadByte() (byte, error) {
	b, err := r.in.ReadByte()
	if err == nil {
		r.sum.Write([]byte{b})
	}
	return b, err
}

// checkSum reads the end of the stream.
func (r *summedReader) checkSum() error {
	want := r.sum.Sum(nil)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r.in, got); err != nil {
		return corrupt("checksum: %w", err)
	}
	if string(got) != string(want) {
		return corrupt("the checksum is %x, not %x", want, got)
	}
	if _, err := r.in.ReadByte(); !errors.Is(err, io.EOF) {
		return corrupt("there is more after its end")
	}
	return nil
}

// allRows walks all rows, in an order in which each follows those that it needs.
func (v *View) allRows(yield func(*swarmpb.Row) bool) {
	for _, walk := range []func(func(*swarmpb.Row) bool) bool{v.objectRows, v.serviceRows, v.taskRows, v.otherRows} {
		if !walk(yield) {
			return
		}
	}
}

func (v *View) objectRows(yield func(*swarmpb.Row) bool) bool {
	if v.cluster != nil && !yield(&swarmpb.Row{Row: &swarmpb.Row_Cluster{Cluster: v.cluster}}) {
		return false
	}
	for node := range v.Nodes() {
		if !yield(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: node}}) {
			return false
		}
	}
	for status := range values(v.nodeStatuses) {
		if !yield(&swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: status}}) {
			return false
		}
	}
	for network := range v.Networks() {
		if !yield(&swarmpb.Row{Row: &swarmpb.Row_Network{Network: network}}) {
			return false
		}
	}
	for progress := range values(v.networkProgress) {
		if !yield(&swarmpb.Row{Row: &swarmpb.Row_NetworkProgress{NetworkProgress: progress}}) {
			return false
		}
	}
	return true
}

func (v *View) serviceRows(yield func(*swarmpb.Row) bool) bool {
	for service := range v.Services() {
		if !yield(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: service}}) {
			return false
		}
	}
	more := true
	v.templates.Scan(func(item templateItem) bool {
		more = yield(&swarmpb.Row{Row: &swarmpb.Row_Template{Template: item.template}})
		return more
	})
	if !more {
		return false
	}
	for progress := range values(v.progress) {
		if !yield(&swarmpb.Row{Row: &swarmpb.Row_ServiceProgress{ServiceProgress: progress}}) {
			return false
		}
	}
	for endpoint := range values(v.endpoints) {
		if !yield(&swarmpb.Row{Row: &swarmpb.Row_ServiceEndpoint{ServiceEndpoint: endpoint}}) {
			return false
		}
	}
	for metric := range values(v.metrics) {
		if !yield(&swarmpb.Row{Row: &swarmpb.Row_ServiceMetric{ServiceMetric: metric}}) {
			return false
		}
	}
	v.revisions.Scan(func(revision *swarmpb.ServiceRevision) bool {
		more = yield(&swarmpb.Row{Row: &swarmpb.Row_ServiceRevision{ServiceRevision: revision}})
		return more
	})
	if !more {
		return false
	}
	v.slots.Scan(func(slot *swarmpb.SlotProgress) bool {
		more = yield(&swarmpb.Row{Row: &swarmpb.Row_SlotProgress{SlotProgress: slot}})
		return more
	})
	return more
}

// taskRows walks table by table, so that a task that replaces another comes before the claims of either.
func (v *View) taskRows(yield func(*swarmpb.Row) bool) bool {
	parts := []func(*taskRow) *swarmpb.Row{
		func(r *taskRow) *swarmpb.Row { return &swarmpb.Row{Row: &swarmpb.Row_Task{Task: r.task}} },
		func(r *taskRow) *swarmpb.Row {
			if r.placement == nil {
				return nil
			}
			return &swarmpb.Row{Row: &swarmpb.Row_TaskPlacement{TaskPlacement: r.placement}}
		},
		func(r *taskRow) *swarmpb.Row {
			if r.addresses == nil {
				return nil
			}
			return &swarmpb.Row{Row: &swarmpb.Row_TaskAddresses{TaskAddresses: r.addresses}}
		},
		func(r *taskRow) *swarmpb.Row {
			if r.status == nil {
				return nil
			}
			return &swarmpb.Row{Row: &swarmpb.Row_TaskStatus{TaskStatus: r.status}}
		},
	}
	for _, part := range parts {
		more := true
		for ordinal := range v.tasks.all() {
			if row := part(v.rows.at(ordinal)); row != nil && !yield(row) {
				more = false
				break
			}
		}
		if !more {
			return false
		}
	}
	return true
}

func (v *View) otherRows(yield func(*swarmpb.Row) bool) bool {
	more := true
	v.allocations.Scan(func(allocation *swarmpb.Allocation) bool {
		more = yield(&swarmpb.Row{Row: &swarmpb.Row_Allocation{Allocation: allocation}})
		return more
	})
	if !more {
		return false
	}
	v.alarms.Scan(func(alarm *swarmpb.Alarm) bool {
		more = yield(&swarmpb.Row{Row: &swarmpb.Row_Alarm{Alarm: alarm}})
		return more
	})
	if !more {
		return false
	}
	v.requestOrder.Scan(func(_ uint64, id string) bool {
		known, _ := v.requests.Get(id)
		more = yield(&swarmpb.Row{Row: &swarmpb.Row_Request{Request: &swarmpb.Request{Id: id, Result: known.result}}})
		return more
	})
	return more
}

// load takes in a row of a snapshot: as it is, with its version and times.
func (t *tx) load(row *swarmpb.Row) error {
	key := row.Key()
	if refused := checkKey(key); refused != nil {
		return errors.New(refused.message)
	}
	if request := row.GetRequest(); request != nil {
		return t.loadRequest(request)
	}
	at := keyOf(key)
	if old, _, _ := t.get(key.Table, at); old != nil {
		return fmt.Errorf("%s is there twice", key.Describe())
	}
	content := content(row)
	switch row := content.(type) {
	case *swarmpb.Cluster:
		if t.cluster != nil {
			return errors.New("there are two clusters")
		}
	case *swarmpb.Service:
		if _, taken := t.names.Get(row.GetSpec().GetName()); taken {
			return fmt.Errorf("%s: its name is taken", key.Describe())
		}
	case *swarmpb.Network:
		if _, taken := t.networkNames.Get(row.GetSpec().GetName()); taken {
			return fmt.Errorf("%s: its name is taken", key.Describe())
		}
	case *swarmpb.Task:
		service := t.Service(row.ServiceId)
		if service == nil || t.Template(row.ServiceId, row.TemplateVersion) == nil {
			return fmt.Errorf("%s: its service or template is missing", key.Describe())
		}
		t.shareTask(row, service)
		content = compactTask(row)
	case *swarmpb.ServiceRevision:
		t.shareRevision(row)
	case *swarmpb.TaskPlacement, *swarmpb.TaskAddresses, *swarmpb.TaskStatus:
		task := t.taskRow(at.ID)
		if task == nil {
			return fmt.Errorf("%s: its task is missing", key.Describe())
		}
		t.sharePart(task, row)
	}
	t.set(key.Table, at, content)
	return nil
}

func (t *tx) loadRequest(row *swarmpb.Request) error {
	if _, known := t.requests.Get(row.Id); known {
		return fmt.Errorf("request %s is there twice", row.Id)
	}
	t.remember(row.Id, row.Result)
	return nil
}

// content is the message inside a row.
func content(row *swarmpb.Row) proto.Message {
	switch row := row.Row.(type) {
	case *swarmpb.Row_Cluster:
		return row.Cluster
	case *swarmpb.Row_Node:
		return row.Node
	case *swarmpb.Row_NodeStatus:
		return row.NodeStatus
	case *swarmpb.Row_Service:
		return row.Service
	case *swarmpb.Row_Template:
		return row.Template
	case *swarmpb.Row_ServiceProgress:
		return row.ServiceProgress
	case *swarmpb.Row_SlotProgress:
		return row.SlotProgress
	case *swarmpb.Row_Task:
		return row.Task
	case *swarmpb.Row_TaskPlacement:
		return row.TaskPlacement
	case *swarmpb.Row_TaskAddresses:
		return row.TaskAddresses
	case *swarmpb.Row_TaskStatus:
		return row.TaskStatus
	case *swarmpb.Row_Allocation:
		return row.Allocation
	case *swarmpb.Row_Alarm:
		return row.Alarm
	case *swarmpb.Row_Network:
		return row.Network
	case *swarmpb.Row_NetworkProgress:
		return row.NetworkProgress
	case *swarmpb.Row_ServiceEndpoint:
		return row.ServiceEndpoint
	case *swarmpb.Row_ServiceRevision:
		return row.ServiceRevision
	case *swarmpb.Row_ServiceMetric:
		return row.ServiceMetric
	default:
		return nil
	}
}
