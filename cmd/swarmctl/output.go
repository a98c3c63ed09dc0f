package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

// listing holds the flags of every listing.
type listing struct {
	format format
	quiet  bool
}

func (l *listing) define(cmd *cobra.Command) {
	l.format.define(cmd, "table", "json")
	cmd.Flags().BoolVarP(&l.quiet, "quiet", "q", false, "print only IDs")
}

// column is one of a table.
type column[T any] struct {
	title string
	value func(T) string
	// shrinks: its cells may be cut on a terminal that is too narrow for the table.
	shrinks bool
}

// table is how rows are listed: -q prints the ids, a table its columns.
type table[T any] struct {
	id      func(T) string
	columns []column[T]
}

// listCommand is `NOUN ls`.
func listCommand[T any](a *app, short, example string, t table[T], fetch func(context.Context, *client) ([]T, error)) *cobra.Command {
	var l listing
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: short, Example: example, Args: noArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.call(func(ctx context.Context, c *client, _ []string) error {
			rows, err := fetch(ctx, c)
			if err != nil {
				return err
			}
			return printRows(a.out, a.width, l, rows, t)
		}),
	}
	l.define(cmd)
	return cmd
}

// printRows writes rows as the flags ask for; a width above 0 is that of the terminal.
func printRows[T any](w io.Writer, width int, l listing, rows []T, t table[T]) error {
	switch {
	case l.quiet:
		for _, r := range rows {
			if _, err := fmt.Fprintln(w, t.id(r)); err != nil {
				return err
			}
		}
		return nil
	case l.format.kind == formatJSON:
		if rows == nil {
			rows = []T{}
		}
		return printJSON(w, rows)
	case l.format.kind == formatTemplate:
		all := make([]any, len(rows))
		for i, r := range rows {
			all[i] = r
		}
		return l.format.execute(w, fieldsOf[T](), all)
	}
	lines := [][]string{make([]string, len(t.columns))}
	shrinks := make([]bool, len(t.columns))
	for i, c := range t.columns {
		lines[0][i], shrinks[i] = c.title, c.shrinks
	}
	for _, r := range rows {
		line := make([]string, len(t.columns))
		for i, c := range t.columns {
			line[i] = clean(c.value(r))
		}
		lines = append(lines, line)
	}
	return printTable(w, width, lines, shrinks)
}

const (
	// columnGap stands between columns, and leastColumn is what a column that shrinks keeps.
	columnGap   = 3
	leastColumn = 8
)

// printTable aligns the lines, of which the first holds the titles. Where they are wider than width, they stand closer
// and the columns that may shrink are cut, from the right.
func printTable(w io.Writer, width int, lines [][]string, shrinks []bool) error {
	widths := make([]int, len(shrinks))
	for _, line := range lines {
		for i, cell := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	gap := columnGap
	if excess := tableWidth(widths, gap) - width; width > 0 && excess > 0 {
		gap--
		excess -= len(widths) - 1
		for i := len(widths) - 1; i >= 0 && excess > 0; i-- {
			if least := max(leastColumn, len(lines[0][i])); shrinks[i] && widths[i] > least {
				by := min(excess, widths[i]-least)
				widths[i], excess = widths[i]-by, excess-by
			}
		}
	}
	var text strings.Builder
	for _, line := range lines {
		var row strings.Builder
		for i, cell := range line {
			cell = cut(cell, widths[i])
			row.WriteString(cell)
			row.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+gap))
		}
		text.WriteString(strings.TrimRight(row.String(), " "))
		text.WriteByte('\n')
	}
	_, err := io.WriteString(w, text.String())
	return err
}

func tableWidth(columns []int, gap int) int {
	total := -gap
	for _, n := range columns {
		total += n + gap
	}
	return total
}

// cut shortens text to n characters.
func cut(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n-1]) + "…"
}

// clean makes text of others fit for one line of a terminal: containers and registries write some of it.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// duration is in words that go on a line's middle: "less than a second", "about a minute", "5 minutes".
func duration(d time.Duration) string {
	words := units.HumanDuration(d)
	return strings.ToLower(words[:1]) + words[1:]
}

// ago is how long ago a time was, in words; empty for 0.
func (a *app) ago(ns int64) string {
	if ns == 0 {
		return ""
	}
	return duration(a.now().Sub(time.Unix(0, ns))) + " ago"
}

// until is a time to come, for people; empty for 0.
func (a *app) until(ns int64) string {
	if ns == 0 {
		return ""
	}
	at := time.Unix(0, ns)
	text := at.UTC().Format("2006-01-02 15:04 UTC")
	if left := at.Sub(a.now()); left > 0 {
		return "until " + text + ", in " + duration(left)
	}
	return "ended " + text + ", " + a.ago(ns)
}

// stamp is a time for JSON; empty for 0.
func stamp(ns int64) string {
	if ns == 0 {
		return ""
	}
	return time.Unix(0, ns).UTC().Format(time.RFC3339Nano)
}

func cpus(nano int64) string {
	text := fmt.Sprintf("%d.%09d", nano/1e9, max(nano, -nano)%1e9)
	return strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
}

// cpusText is a number of CPUs with its unit.
func cpusText(nano int64) string {
	if nano == 1e9 {
		return "1 CPU"
	}
	return cpus(nano) + " CPUs"
}

func memory(bytes int64) string { return units.BytesSize(float64(bytes)) }

// size is that of files and images, in decimal units.
func size(bytes int64) string { return units.HumanSize(float64(bytes)) }

// short cuts an ID for a table; it still names the object.
func short(id string) string { return id[:min(len(id), 12)] }

// count is a number with its noun: 1 task, 2 tasks.
func count[N int | uint32 | uint64](n N, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprint(n) + " " + noun + "s"
}

// printer writes "Name:  value" lines, leaving out empty values.
type printer struct {
	w io.Writer
	// width is that of the longest name with its colon.
	width int
}

func (p printer) line(name, value string) {
	if value != "" {
		_, _ = fmt.Fprintf(p.w, "%-*s %s\n", p.width, name+":", clean(value))
	}
}

func (p printer) lines(name string, values []string) {
	for _, v := range values {
		p.line(name, cmp.Or(v, `""`))
	}
}
