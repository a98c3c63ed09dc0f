package measure

import (
	"testing"
	"time"
)

func TestSeries_MedianAndWorst(t *testing.T) {
	for _, c := range []struct {
		in            Series
		median, worst time.Duration
	}{
		{nil, 0, 0},
		{Series{3}, 3, 3},
		{Series{9, 1, 5}, 5, 9},
		{Series{9, 1, 5, 7}, 6, 9},
	} {
		if got := c.in.Median(); got != c.median {
			t.Errorf("median of %v: %d, want %d", []time.Duration(c.in), got, c.median)
		}
		if got := c.in.Worst(); got != c.worst {
			t.Errorf("worst of %v: %d, want %d", []time.Duration(c.in), got, c.worst)
		}
	}
}

func TestProcess_KindByCommandLine(t *testing.T) {
	for _, c := range []struct {
		argv []string
		want string
	}{
		{[]string{"/bin/swarmd", "--cgroup-parent", "/x", ""}, "swarmd"},
		{[]string{"containerd", "-c", "x", ""}, "containerd"},
		{[]string{"/proc/self/exe", "-namespace", "swarmd", ""}, "shim"},
		{[]string{"/x/containerd-shim-runc-v2", "-id", "1", ""}, "shim"},
		{[]string{"/var/lib/swarmd/bin/logger-0123", ""}, "logger"},
	} {
		if got := kindOf(c.argv); got != c.want {
			t.Errorf("%v: %s, want %s", c.argv, got, c.want)
		}
	}
}
