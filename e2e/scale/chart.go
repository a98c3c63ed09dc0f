package main

import (
	"fmt"
	"math"
	"strings"
)

const (
	width, height = 760, 420
	left, right   = 80, 30
	top, bottom   = 40, 70
)

// draw makes a chart of the managers' CPU a task, and of the time, against the number of tasks; both axes are logarithmic.
func draw(results []result) string {
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", width, height)
	fmt.Fprintf(&b, `<text x="%d" y="22" font-size="14">All managers' CPU and time until the last task was reported RUNNING; simulated workers</text>`+"\n", left)
	if len(results) == 0 {
		return b.String() + "</svg>\n"
	}
	cpu, wall := points(results, func(r result) float64 { return r.LeaderCPU + r.FollowersCPU }), points(results, func(r result) float64 { return r.Time })
	x, y := axis(cpu, wall)
	for e := x.low; e <= x.high; e++ {
		at := x.at(math.Pow10(e), left, width-right)
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#ddd"/><text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n",
			at, top, at, height-bottom, at, height-bottom+18, power(e))
	}
	for e := y.low; e <= y.high; e++ {
		at := y.at(math.Pow10(e), height-bottom, top)
		fmt.Fprintf(&b, `<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%s s</text>`+"\n",
			left, at, width-right, at, left-6, at+4, power(e))
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle">tasks</text>`+"\n", (left+width-right)/2, height-bottom+38)
	for i, line := range []struct {
		name, colour string
		points       []point
	}{{"CPU of all managers", "#1f6feb", cpu}, {"time", "#d1661f", wall}} {
		var path []string
		for _, p := range line.points {
			px, py := x.at(p.x, left, width-right), y.at(p.y, height-bottom, top)
			path = append(path, fmt.Sprintf("%.1f,%.1f", px, py))
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="3.5" fill="%s"/>`+"\n", px, py, line.colour)
		}
		fmt.Fprintf(&b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(path, " "), line.colour)
		fmt.Fprintf(&b, `<rect x="%d" y="%d" width="12" height="12" fill="%s"/><text x="%d" y="%d">%s</text>`+"\n",
			left+10+200*i, height-22, line.colour, left+28+200*i, height-12, line.name)
	}
	return b.String() + "</svg>\n"
}

type point struct{ x, y float64 }

func points(results []result, y func(result) float64) []point {
	var out []point
	for _, r := range results {
		out = append(out, point{float64(r.Tasks), max(y(r), 1e-3)})
	}
	return out
}

// scale is a logarithmic axis between two powers of ten.
type scale struct{ low, high int }

func (s scale) at(value, from, to float64) float64 {
	return from + (to-from)*(math.Log10(value)-float64(s.low))/float64(max(1, s.high-s.low))
}

func axis(lines ...[]point) (x, y scale) {
	x, y = scale{math.MaxInt32, math.MinInt32}, scale{math.MaxInt32, math.MinInt32}
	grow := func(s *scale, v float64) {
		s.low, s.high = min(s.low, int(math.Floor(math.Log10(v)))), max(s.high, int(math.Ceil(math.Log10(v))))
	}
	for _, line := range lines {
		for _, p := range line {
			grow(&x, p.x)
			grow(&y, p.y)
		}
	}
	return x, y
}

func power(e int) string {
	if e < 0 {
		return fmt.Sprintf("%g", math.Pow10(e))
	}
	return fmt.Sprintf("%.0f", math.Pow10(e))
}
