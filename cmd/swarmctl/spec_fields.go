package main

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/docker/go-units"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// specField is a line of a spec as people compare it: task.container.env: MODE=prod. A list has a line for each element.
type specField struct {
	// order sorts fields as the spec has them, name is the path as `inspect` has it.
	order, name, value string
}

func (f specField) line() string { return f.name + ": " + f.value }

// specFields are the fields of a message that are set.
func specFields(m proto.Message) []specField {
	var w fieldWalk
	w.message(m.ProtoReflect(), "", "")
	return w.fields
}

type fieldWalk struct{ fields []specField }

func (w *fieldWalk) add(order, name, value string) {
	w.fields = append(w.fields, specField{order, name, value})
}

func (w *fieldWalk) message(m protoreflect.Message, order, path string) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		at, name := fmt.Sprintf("%s%03d.", order, i), path+f.JSONName()
		v := m.Get(f)
		switch {
		case !m.Has(f), f.Kind() == protoreflect.BytesKind, f.Message() != nil && f.Message().FullName() == credentials:
		case f.IsMap():
			w.entries(f, v.Map(), at, name)
		case f.IsList() && inOrder[string(f.Name())]:
			w.add(at, name, listText(f, v.List()))
		case f.IsList():
			for i := range v.List().Len() {
				w.add(at, name, elementText(f, v.List().Get(i)))
			}
		case isNested(f):
			if text, ok := wordOf(v.Message().Interface()); ok {
				w.add(at, name, text)
			} else {
				w.nested(f, v.Message(), at, name)
			}
		default:
			w.add(at, name, scalarText(f, v))
		}
	}
}

// inOrder names the lists that mean something only as a whole.
var inOrder = map[string]bool{"command": true, "args": true, "pre_stop": true, "canary_steps": true}

func isNested(f protoreflect.FieldDescriptor) bool {
	return f.Message() != nil && f.Message().FullName() != (&durationpb.Duration{}).ProtoReflect().Descriptor().FullName()
}

// nested is a message within one. Of the alternatives of a choice, the one that is there says something by that alone.
func (w *fieldWalk) nested(f protoreflect.FieldDescriptor, m protoreflect.Message, order, name string) {
	before := len(w.fields)
	w.message(m, order, name+".")
	if len(w.fields) > before || f.ContainingOneof() == nil {
		return
	}
	inner := f.Message().Fields()
	if inner.Len() == 0 {
		w.add(order, name, "yes")
		return
	}
	first := inner.Get(0)
	w.add(order+"000.", name+"."+first.JSONName(), scalarText(first, m.Get(first)))
}

func (w *fieldWalk) entries(f protoreflect.FieldDescriptor, m protoreflect.Map, order, name string) {
	keys := map[string]string{}
	m.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		keys[k.String()] = scalarText(f.MapValue(), v)
		return true
	})
	var names []string
	for k := range keys {
		names = append(names, k)
	}
	slices.Sort(names)
	for _, k := range names {
		w.add(order+k, name+"."+k, keys[k])
	}
}

func listText(f protoreflect.FieldDescriptor, list protoreflect.List) string {
	var words []string
	for i := range list.Len() {
		word := elementText(f, list.Get(i))
		if f.Message() == nil && strings.Contains(word, " ") && !strings.HasPrefix(word, `"`) {
			word = strconv.Quote(word) // so that one word with a space is not two
		}
		words = append(words, word)
	}
	if f.Message() != nil {
		return strings.Join(words, ",")
	}
	return strings.Join(words, " ")
}

// elementText is an element of a list on one line: name=back,aliases=db.
func elementText(f protoreflect.FieldDescriptor, v protoreflect.Value) string {
	if !isNested(f) {
		return scalarText(f, v)
	}
	if text, ok := wordOf(v.Message().Interface()); ok {
		return text
	}
	var parts []string
	for _, inner := range specFields(v.Message().Interface()) {
		parts = append(parts, inner.name+"="+inner.value)
	}
	return strings.Join(parts, ",")
}

// wordOf is a message that a user writes in one word.
func wordOf(m proto.Message) (text string, ok bool) {
	switch m := m.(type) {
	case *swarmpb.CanaryStep:
		return canaryStepsText([]*swarmpb.CanaryStep{m}), true
	case *swarmpb.Platform:
		text = platformText(m)
		return text, text != ""
	case *swarmpb.GenericResource:
		if len(m.GetInstances()) == 0 {
			return genericText(m), true
		}
	case *swarmpb.PlacementPreference:
		if m.GetSpread() != nil {
			return preferenceText(m), true
		}
	case *swarmpb.DisruptionBudget:
		text = budgetText(m)
		return text, text != ""
	}
	return "", false
}

// scalarText is a value on one line, such that other values read otherwise.
func scalarText(f protoreflect.FieldDescriptor, v protoreflect.Value) string {
	switch f.Kind() {
	case protoreflect.EnumKind:
		return enumWord(f.Enum(), v.Enum())
	case protoreflect.MessageKind:
		if d, ok := v.Message().Interface().(*durationpb.Duration); ok {
			return exactSpan(d)
		}
	case protoreflect.StringKind:
		return plainWord(v.String())
	case protoreflect.Int64Kind:
		return amountText(string(f.Name()), v.Int())
	}
	return fmt.Sprint(v.Interface())
}

// amountText is an amount in its unit, where that says it exactly.
func amountText(field string, n int64) string {
	switch {
	case field == "nano_cpus":
		return cpusText(n)
	case strings.HasSuffix(field, "_bytes"):
		if back, err := units.RAMInBytes(memory(n)); err == nil && back == n {
			return memory(n)
		}
	}
	return strconv.FormatInt(n, 10)
}

// plainWord is a text as it is, or quoted where its beginning or end would not be seen.
func plainWord(s string) string {
	if s == "" || strings.TrimSpace(s) != s || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) || strings.HasPrefix(s, `"`) {
		return strconv.Quote(s)
	}
	return s
}

// Kinds of a change.
const (
	fieldAdded   = "added"
	fieldRemoved = "removed"
	fieldChanged = "changed"
)

// fieldChange is a field that differs between two specs.
type fieldChange struct {
	Field  string `json:"field"`
	Change string `json:"change"`
	Before string `json:"before"`
	After  string `json:"after"`
}

// diffFields lists what differs, in the order of the spec; of a list the elements that came and went.
func diffFields(before, after []specField) []fieldChange {
	type values struct {
		order, name   string
		before, after []string
	}
	byOrder := map[string]*values{}
	at := func(f specField) *values {
		v := byOrder[f.order+"\x00"+f.name]
		if v == nil {
			v = &values{order: f.order, name: f.name}
			byOrder[f.order+"\x00"+f.name] = v
		}
		return v
	}
	for _, f := range before {
		at(f).before = append(at(f).before, f.value)
	}
	for _, f := range after {
		at(f).after = append(at(f).after, f.value)
	}
	var all []*values
	for _, v := range byOrder {
		all = append(all, v)
	}
	slices.SortFunc(all, func(x, y *values) int { return cmp.Or(cmp.Compare(x.order, y.order), cmp.Compare(x.name, y.name)) })
	out := []fieldChange{}
	for _, v := range all {
		out = append(out, diffValues(v.name, v.before, v.after)...)
	}
	return out
}

func diffValues(name string, before, after []string) (out []fieldChange) {
	if slices.Equal(before, after) {
		return nil
	}
	gone, come := without(before, after), without(after, before)
	switch {
	case len(gone)+len(come) == 0: // only the order of a list has changed
		return []fieldChange{{name, fieldChanged, strings.Join(before, ", "), strings.Join(after, ", ")}}
	case len(before) == 1 && len(after) == 1:
		return []fieldChange{{name, fieldChanged, before[0], after[0]}}
	}
	for _, v := range gone {
		out = append(out, fieldChange{name, fieldRemoved, v, ""})
	}
	for _, v := range come {
		out = append(out, fieldChange{name, fieldAdded, "", v})
	}
	return out
}

// without are the values that the others do not have, each as often as it is more.
func without(values, others []string) []string {
	left := map[string]int{}
	for _, o := range others {
		left[o]++
	}
	return slices.DeleteFunc(slices.Clone(values), func(v string) bool {
		left[v]--
		return left[v] >= 0
	})
}
