package containerd

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Real-time signals as C libraries count them: two are theirs.
const (
	realTimeMin = 34
	realTimeMax = 64
)

// parseSignal reads SIGTERM, TERM, 15, SIGRTMIN+3 or SIGRTMAX-1, in any case.
func parseSignal(text string) (unix.Signal, error) {
	name := strings.TrimPrefix(strings.ToUpper(text), "SIG")
	if n, err := strconv.Atoi(name); err == nil {
		if n < 1 || n > realTimeMax {
			return 0, invalid("signal %q is not between 1 and %d", text, realTimeMax)
		}
		return unix.Signal(n), nil
	}
	if n := unix.SignalNum("SIG" + name); n != 0 {
		return n, nil
	}
	for prefix, base := range map[string]int{"RTMIN": realTimeMin, "RTMAX": realTimeMax} {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		offset := 0
		if rest != "" {
			var err error
			if offset, err = strconv.Atoi(rest); err != nil {
				break
			}
		}
		if n := base + offset; n >= realTimeMin && n <= realTimeMax {
			return unix.Signal(n), nil
		}
	}
	return 0, invalid("signal %q is not known; name one as SIGTERM or by its number", text)
}
