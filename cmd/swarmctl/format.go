package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"text/template"
	"unicode"

	"github.com/spf13/cobra"
)

const (
	formatTable    = "table"
	formatJSON     = "json"
	formatTemplate = "template"
)

// format is the value of --format: table, json, a Go template, or "table" and a template that makes the columns.
type format struct {
	kind    string
	known   []string // words that stand for a kind, first the one that is meant when nothing is given
	text    string
	columns bool
	parsed  *template.Template
}

// define adds the flag, with the words that it knows. Only a listing keeps -f free, which docker has for filters.
func (f *format) define(cmd *cobra.Command, known ...string) {
	f.known, f.kind, f.text = known, known[0], known[0]
	short := ""
	if f.kind != formatTable {
		short = "f"
	}
	cmd.Flags().VarP(f, "format", short, strings.Join(known, ", ")+", or a Go `template` such as '{{.ID}}'")
	completeWords(cmd, "format", known...)
}

func (f *format) String() string { return f.text }
func (*format) Type() string     { return "template" }

// Set reads the flag.
func (f *format) Set(s string) error {
	if slices.Contains(f.known, s) {
		f.kind, f.text = s, s
		return nil
	}
	f.text = s
	if rest, ok := strings.CutPrefix(s, "table "); ok && f.known[0] == formatTable {
		s, f.columns = rest, true
	}
	if !strings.Contains(s, "{{") {
		return fmt.Errorf("want %s, or a Go template such as '{{.ID}}'", strings.Join(f.known, ", "))
	}
	// A shell passes \t as it is; docker takes it for a tab.
	s = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(s)
	t, err := template.New("").Option("missingkey=error").Funcs(template.FuncMap{
		"json":  jsonText,
		"upper": strings.ToUpper, "lower": strings.ToLower, "join": joinAny,
	}).Parse(s)
	if err != nil {
		return fmt.Errorf("no valid Go template: %s", strings.TrimPrefix(err.Error(), "template: :"))
	}
	f.kind, f.parsed = formatTemplate, t
	return nil
}

// jsonText is v as JSON on one line.
func jsonText(v any) (string, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return strings.TrimSuffix(b.String(), "\n"), err
}

// joinAny joins a list of whatever: those of an inspected object are not lists of strings.
func joinAny(list any, sep string) (string, error) {
	v := reflect.ValueOf(list)
	if v.Kind() != reflect.Slice {
		return "", fmt.Errorf("join: %v is no list", list)
	}
	var parts []string
	for i := range v.Len() {
		parts = append(parts, fmt.Sprint(v.Index(i).Interface()))
	}
	return strings.Join(parts, sep), nil
}

// execute writes a line for each row; fields are those that a row has.
func (f *format) execute(w io.Writer, fields []string, rows []any) error {
	var lines [][]string
	if f.columns {
		titles := map[string]any{}
		for _, name := range fields {
			titles[name] = title(name)
		}
		rows = append([]any{titles}, rows...)
	}
	for _, r := range rows {
		var line bytes.Buffer
		if err := f.parsed.Execute(&line, r); err != nil {
			return fmt.Errorf("--format %q: %w", f.text, explainTemplate(err, fields))
		}
		if !f.columns {
			if _, err := fmt.Fprintln(w, line.String()); err != nil {
				return err
			}
			continue
		}
		lines = append(lines, strings.Split(line.String(), "\t"))
	}
	if len(lines) == 0 {
		return nil
	}
	return printTable(w, 0, lines, make([]bool, len(lines[0])))
}

// unknownField finds what a template asked for in vain, in the two wordings of text/template.
var unknownField = regexp.MustCompile(`can't evaluate field (\w+)|map has no entry for key "(\w+)"`)

func explainTemplate(err error, fields []string) error {
	var exec template.ExecError
	if m := unknownField.FindStringSubmatch(err.Error()); m != nil {
		return fmt.Errorf("there is no field %s; there are %s", m[1]+m[2], strings.Join(fields, ", "))
	}
	if errors.As(err, &exec) && exec.Err != nil {
		return exec.Err
	}
	return err
}

// fieldsOf are the names that a template can use of a row.
func fieldsOf[T any]() []string {
	t := reflect.TypeFor[T]()
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	var out []string
	for _, f := range reflect.VisibleFields(t) {
		if f.IsExported() {
			out = append(out, f.Name)
		}
	}
	return out
}

// title is a field's name as a column's: DesiredState is DESIRED STATE.
func title(field string) string {
	var out strings.Builder
	for i, r := range field {
		if i > 0 && unicode.IsUpper(r) && unicode.IsLower(rune(field[i-1])) {
			out.WriteByte(' ')
		}
		out.WriteRune(unicode.ToUpper(r))
	}
	return out.String()
}
