package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	// shownReplicas is up to how many replicas have a line of their own; of more, only those in trouble, at most
	// shownTroubles.
	shownReplicas = 20
	shownTroubles = 5
	// saidTroubles is how many lines about troubles are printed where nothing can be drawn over, and saidPulls of how
	// many replicas it is said every sayEvery how far their images are.
	saidTroubles = 20
	saidPulls    = 5
	// saidSummaries is how many changes of numbers are printed there before only one every sayEvery is.
	saidSummaries = 50
)

// screen shows verdicts. On a terminal it draws them over one another; elsewhere it prints what is new.
type screen struct {
	out             io.Writer
	terminal, quiet bool
	width, height   int
	// drawn is how many lines stand on the terminal, last what they are or, elsewhere, the last summary.
	drawn int
	last  string
	said  map[string]bool
	// headline is that of the last summary, summaries how many were printed, summaryAt when the last one was.
	headline  string
	summaries int
	summaryAt time.Time
	// pulls are the replicas of which it was said how far their images are, saidAt when that was; zero = none is under way.
	pulls  map[string]bool
	saidAt time.Time
}

func (s *screen) draw(v verdict, now time.Time) {
	if s.quiet || v.summary == "" {
		return
	}
	if s.terminal {
		s.overdraw(v)
		return
	}
	s.print(v, now)
	s.printPulls(v.replicas, now)
}

// overdraw writes all lines anew in the place of those before.
func (s *screen) overdraw(v verdict) {
	lines := append(slices.Clone(v.sets), s.lines(v.replicas, len(v.sets))...)
	lines = append(lines, v.summary+v.countdown)
	for i, l := range lines {
		lines[i] = clean(l)
		if s.width > 0 {
			lines[i] = cut(lines[i], s.width) // a wrapped line would not be drawn over
		}
	}
	text := strings.Join(lines, "\n")
	if text == s.last {
		return
	}
	if s.drawn > 0 {
		text = fmt.Sprintf("\x1b[%dA\x1b[J", s.drawn) + text
	}
	_, _ = fmt.Fprintln(s.out, text)
	s.last, s.drawn = strings.Join(lines, "\n"), len(lines)
}

// lines are the replicas' that there is room for beside others.
func (s *screen) lines(replicas []replica, others int) []string {
	room := shownReplicas
	if s.height > 0 {
		room = min(room, max(s.height-2-others, 0)) // the summary, and the line that the cursor is on
	}
	var hidden string
	if len(replicas) > room {
		room = min(shownTroubles, max(room-1, 0))
		replicas, hidden = troubles(replicas, room)
	}
	widest := 0
	for _, r := range replicas {
		widest = max(widest, utf8.RuneCountInString(r.name))
	}
	var out []string
	for _, r := range replicas {
		out = append(out, fmt.Sprintf("%-*s  %s", widest, r.name, r.text))
	}
	if hidden != "" {
		out = append(out, hidden)
	}
	return out
}

// troubles picks replicas in trouble, at most room, and says how many more there are.
func troubles(replicas []replica, room int) (shown []replica, hidden string) {
	more := 0
	for _, r := range replicas {
		switch {
		case r.trouble == "":
		case len(shown) < room:
			shown = append(shown, r)
		default:
			more++
		}
	}
	if more > 0 {
		hidden = "and " + count(more, "more replica") + " in trouble"
	}
	return shown, hidden
}

// print writes each trouble once, and the summary when it has changed; of many changes in numbers alone, some.
func (s *screen) print(v verdict, now time.Time) {
	if s.said == nil {
		s.said = map[string]bool{}
	}
	for _, r := range v.replicas {
		line := clean(r.name + "  " + r.trouble)
		if r.trouble == "" || s.said[line] || len(s.said) == saidTroubles {
			continue
		}
		s.said[line] = true
		_, _ = fmt.Fprintln(s.out, line)
	}
	summary := v.summary
	if v.setsText != "" {
		summary += "; " + v.setsText
	}
	urgent := v.done || v.err != nil || v.headline != s.headline || s.summaries < saidSummaries || now.Sub(s.summaryAt) >= sayEvery
	if summary == s.last || !urgent {
		return
	}
	s.last, s.headline, s.summaryAt = summary, v.headline, now
	s.summaries++
	_, _ = fmt.Fprintln(s.out, clean(summary))
}

// printPulls says now and then how far images are that take their time, and of those what came of it.
func (s *screen) printPulls(replicas []replica, now time.Time) {
	var under []replica
	for _, r := range replicas {
		switch {
		case r.prepares:
			under = append(under, r)
		case s.pulls[r.name]:
			delete(s.pulls, r.name)
			if r.trouble == "" { // which is said anyway
				_, _ = fmt.Fprintln(s.out, clean(r.name+"  "+r.text))
			}
		}
	}
	switch {
	case len(under) == 0:
		s.saidAt = time.Time{}
		return
	case s.saidAt.IsZero():
		s.saidAt = now // most are there before anything is to be said
		return
	case now.Sub(s.saidAt) < sayEvery:
		return
	}
	s.saidAt = now
	if s.pulls == nil {
		s.pulls = map[string]bool{}
	}
	shown := min(len(under), saidPulls)
	for _, r := range under[:shown] {
		s.pulls[r.name] = true
		_, _ = fmt.Fprintln(s.out, clean(r.name+"  "+r.text))
	}
	if more := len(under) - shown; more > 0 {
		_, _ = fmt.Fprintln(s.out, "and "+count(more, "more replica")+" being prepared")
	}
}
