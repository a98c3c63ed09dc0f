package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

const (
	// diffContext is how many lines that are the same stand around those that differ.
	diffContext = 3
	// diffEffort bounds the work of finding what two texts have in common; beyond it all of the middle differs.
	diffEffort = 4 << 20
)

// edit is a line of a comparison: ' ' in both, '-' only before, '+' only after.
type edit struct {
	sign byte
	text string
}

// compareLines tells how one text becomes the other.
func compareLines(before, after []string) []edit {
	head := 0
	for head < min(len(before), len(after)) && before[head] == after[head] {
		head++
	}
	tail := 0
	for tail < min(len(before), len(after))-head && before[len(before)-1-tail] == after[len(after)-1-tail] {
		tail++
	}
	var out []edit
	same := func(lines []string) {
		for _, l := range lines {
			out = append(out, edit{' ', l})
		}
	}
	same(before[:head])
	out = append(out, compareMiddle(before[head:len(before)-tail], after[head:len(after)-tail])...)
	same(before[len(before)-tail:])
	return out
}

// compareMiddle finds the longest sequence of lines that two texts have in common.
func compareMiddle(before, after []string) (out []edit) {
	rows, columns := len(before)+1, len(after)+1
	if rows*columns > diffEffort {
		for _, l := range before {
			out = append(out, edit{'-', l})
		}
		for _, l := range after {
			out = append(out, edit{'+', l})
		}
		return out
	}
	common := make([]int32, rows*columns) // of what is left from (i, j) on
	for i := len(before) - 1; i >= 0; i-- {
		for j := len(after) - 1; j >= 0; j-- {
			if before[i] == after[j] {
				common[i*columns+j] = common[(i+1)*columns+j+1] + 1
			} else {
				common[i*columns+j] = max(common[(i+1)*columns+j], common[i*columns+j+1])
			}
		}
	}
	i, j := 0, 0
	for i < len(before) || j < len(after) {
		switch {
		case i < len(before) && j < len(after) && before[i] == after[j]:
			out = append(out, edit{' ', before[i]})
			i, j = i+1, j+1
		case j == len(after) || i < len(before) && common[(i+1)*columns+j] >= common[i*columns+j+1]:
			out = append(out, edit{'-', before[i]})
			i++
		default:
			out = append(out, edit{'+', after[j]})
			j++
		}
	}
	return out
}

// printUnified writes a unified diff; nothing when the texts are the same.
func (a *app) printUnified(w io.Writer, from, to string, before, after []string) {
	edits := compareLines(before, after)
	differs := func(e edit) bool { return e.sign != ' ' }
	if !slices.ContainsFunc(edits, differs) {
		return
	}
	_, _ = fmt.Fprintln(w, a.colour(bold, "--- "+from))
	_, _ = fmt.Fprintln(w, a.colour(bold, "+++ "+to))
	old, fresh := 1, 1 // numbers of the next lines
	for at := 0; at < len(edits); {
		first := slices.IndexFunc(edits[at:], differs)
		if first < 0 {
			return
		}
		begin := max(at, at+first-diffContext)
		old, fresh = old+begin-at, fresh+begin-at
		end := hunkEnd(edits, at+first)
		removed, added := 0, 0
		for _, e := range edits[begin:end] {
			if e.sign != '+' {
				removed++
			}
			if e.sign != '-' {
				added++
			}
		}
		_, _ = fmt.Fprintln(w, a.colour(cyan, fmt.Sprintf("@@ -%s +%s @@", hunkRange(old, removed), hunkRange(fresh, added))))
		for _, e := range edits[begin:end] {
			_, _ = fmt.Fprintln(w, a.colour(signColour(e.sign), clean(string(e.sign)+e.text)))
		}
		old, fresh, at = old+removed, fresh+added, end
	}
}

// hunkEnd is where the lines around what differs at a place end: beyond twice the context, others begin anew.
func hunkEnd(edits []edit, at int) int {
	last := at
	for i := at; i < len(edits) && i-last <= 2*diffContext; i++ {
		if edits[i].sign != ' ' {
			last = i
		}
	}
	return min(last+1+diffContext, len(edits))
}

// hunkRange is lines as a unified diff names them.
func hunkRange(first, n int) string {
	if n == 0 {
		return fmt.Sprintf("%d,0", first-1)
	}
	if n == 1 {
		return fmt.Sprint(first)
	}
	return fmt.Sprintf("%d,%d", first, n)
}

// Colours, as terminals take them.
const (
	bold  = "1"
	red   = "31"
	green = "32"
	cyan  = "36"
)

func signColour(sign byte) string {
	return map[byte]string{'-': red, '+': green}[sign]
}

// colour puts a colour around text where somebody can see it.
func (a *app) colour(colour, text string) string {
	if !a.colours || colour == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// fieldLines are fields as lines of a text.
func fieldLines(fields []specField) []string {
	out := make([]string, len(fields))
	for i, f := range fields {
		out[i] = f.line()
	}
	return out
}

// printChanges writes fields that differ, one a line.
func (a *app) printChanges(w io.Writer, changes []fieldChange) {
	widest := 0
	for _, c := range changes {
		widest = max(widest, len(c.Field))
	}
	for _, c := range changes {
		sign, value := byte('~'), c.Before+" -> "+c.After
		switch c.Change {
		case fieldAdded:
			sign, value = '+', c.After
		case fieldRemoved:
			sign, value = '-', c.Before
		}
		line := fmt.Sprintf("%c %-*s  %s", sign, widest, c.Field, value)
		_, _ = fmt.Fprintln(w, a.colour(signColour(sign), clean(strings.TrimRight(line, " "))))
	}
}
