package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/durationpb"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// inspected is an object to look at: its message, and how it reads to people.
type inspected struct {
	message proto.Message
	// within names the fields that hold the object's own rows: theirs are shown beside those of the message.
	within []string
	pretty func(io.Writer)
}

// inspectCommand is `NOUN inspect`.
func (a *app) inspectCommand(noun, long, example string, complete names, get func(context.Context, *client, string) (inspected, error)) *cobra.Command {
	var (
		f      format
		pretty bool
	)
	cmd := &cobra.Command{
		Use: "inspect " + strings.ToUpper(noun) + "...", Short: "Show all about " + noun + "s", Long: long, Example: example,
		Args: someArgs(noun), ValidArgsFunction: a.complete(complete),
		RunE: a.call(func(ctx context.Context, c *client, args []string) error {
			var found []inspected
			missing := each(args, func(arg string) error {
				object, err := get(ctx, c, arg)
				if err == nil {
					found = append(found, object)
				}
				return err
			})
			if len(found) == 0 && (pretty || f.kind == formatTemplate) {
				return missing
			}
			return errors.Join(printInspected(a.out, f, pretty, found), missing)
		}),
	}
	f.define(cmd, formatJSON)
	a.reading(cmd)
	prettyFlag(cmd, &pretty)
	return cmd
}

// prettyFlag has --pretty in the place of --format.
func prettyFlag(cmd *cobra.Command, pretty *bool) {
	cmd.Flags().BoolVar(pretty, "pretty", false, "print for people instead of as JSON")
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if *pretty && cmd.Flags().Changed("format") {
			return usageError(cmd, "--pretty does not go with --format")
		}
		return nil
	}
}

func printInspected(w io.Writer, f format, pretty bool, objects []inspected) error {
	if pretty {
		for n, o := range objects {
			if n > 0 {
				_, _ = fmt.Fprintln(w)
			}
			o.pretty(w)
		}
		return nil
	}
	if f.kind == formatJSON {
		all := []any{}
		for _, o := range objects {
			all = append(all, o.fields(plainer{name: protoreflect.FieldDescriptor.JSONName}))
		}
		return printJSON(w, all)
	}
	var all []any
	var fields []string
	for _, o := range objects {
		m := o.fields(plainer{name: exportedName, whole: true})
		all, fields = append(all, m), slices.Sorted(maps.Keys(m))
	}
	return f.execute(w, fields, all)
}

// fields is the object as one map.
func (o inspected) fields(p plainer) map[string]any {
	out := p.message(o.message.ProtoReflect())
	m := o.message.ProtoReflect()
	for _, field := range o.within {
		f := m.Descriptor().Fields().ByName(protoreflect.Name(field))
		m = m.Get(f).Message()
		inner, _ := out[p.name(f)].(map[string]any)
		delete(out, p.name(f))
		for name, value := range inner {
			if _, taken := out[name]; !taken {
				out[name] = value
			}
		}
	}
	return out
}

// plainer turns messages into maps, lists and scalars that read well: enums by their users' words, times as RFC 3339
// or "" when unset, durations as text. Bytes are left out.
type plainer struct {
	name func(protoreflect.FieldDescriptor) string
	// whole: messages that are not set are there with nothing in them, so that a template can ask for their fields.
	whole bool
}

// credentials are shown to nobody, whoever sends them.
var credentials = (&swarmpb.RegistryAuth{}).ProtoReflect().Descriptor().FullName()

// exportedName is a field's name in a template: Spec, ServiceID.
func exportedName(f protoreflect.FieldDescriptor) string {
	name := f.JSONName()
	if name == "id" {
		return "ID"
	}
	name = strings.ToUpper(name[:1]) + name[1:]
	for from, to := range map[string]string{"Id": "ID", "Cpus": "CPUs"} {
		if head, ok := strings.CutSuffix(name, from); ok {
			name = head + to
		}
	}
	return name
}

func (p plainer) message(m protoreflect.Message) map[string]any {
	out := map[string]any{}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		v := m.Get(f)
		switch {
		case f.Kind() == protoreflect.BytesKind, f.Message() != nil && f.Message().FullName() == credentials:
		case f.IsList():
			list := []any{}
			for i := range v.List().Len() {
				list = append(list, p.value(f, v.List().Get(i)))
			}
			out[p.name(f)] = list
		case f.IsMap():
			entries := map[string]any{}
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				entries[k.String()] = p.value(f.MapValue(), v)
				return true
			})
			out[p.name(f)] = entries
		case !f.HasPresence() || m.Has(f):
			out[p.name(f)] = p.value(f, v)
		case p.whole && f.Message() != nil && f.ContainingOneof() == nil:
			out[p.name(f)] = p.value(f, v)
		case p.whole:
			out[p.name(f)] = nil
		}
	}
	return out
}

func (p plainer) value(f protoreflect.FieldDescriptor, v protoreflect.Value) any {
	switch f.Kind() {
	case protoreflect.EnumKind:
		return enumWord(f.Enum(), v.Enum())
	case protoreflect.MessageKind:
		d, ok := v.Message().Interface().(*durationpb.Duration)
		switch {
		case ok && !v.Message().IsValid():
			return ""
		case ok:
			return d.AsDuration().String()
		}
		return p.message(v.Message())
	case protoreflect.Int64Kind:
		if isTime(string(f.Name())) {
			return stamp(v.Int())
		}
	}
	return v.Interface()
}

// isTime tells a field that holds Unix nanoseconds; other int64s are amounts.
func isTime(field string) bool {
	switch field {
	case "at", "since", "start_not_before", "not_before":
		return true
	}
	return strings.HasSuffix(field, "_at")
}

// enumWord is the value in the user's words; empty when it is not set and that means nothing.
func enumWord(e protoreflect.EnumDescriptor, n protoreflect.EnumNumber) string {
	t, err := protoregistry.GlobalTypes.FindEnumByName(e.FullName())
	if err != nil {
		return fmt.Sprint(n)
	}
	word := fmt.Sprint(n)
	if named, ok := t.New(n).(interface{ Name() string }); ok {
		word = named.Name()
	}
	if n == 0 && word == "unspecified" {
		return ""
	}
	return word
}

// span is a duration for people; empty when it is not set.
func span(d *durationpb.Duration) string {
	if d == nil {
		return ""
	}
	text := d.AsDuration().Round(time.Millisecond).String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
