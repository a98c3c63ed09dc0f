package measure

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// Series are several measures of the same.
type Series []time.Duration

// Median is the middle one, or the mean of the two in the middle.
func (s Series) Median() time.Duration {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// Worst is the longest.
func (s Series) Worst() time.Duration {
	if len(s) == 0 {
		return 0
	}
	return slices.Max(s)
}

func (s Series) String() string {
	return fmt.Sprintf("median %s, worst %s of %d", Seconds(s.Median()), Seconds(s.Worst()), len(s))
}

// Seconds writes a time as tables have it.
func Seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }

// Load of the machine, as the kernel counts it: a figure taken under load is worth its ratios alone.
func Load() string {
	body, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(body))[:3], " ")
}
