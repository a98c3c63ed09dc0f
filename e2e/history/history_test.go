package history

import (
	"errors"
	"testing"
	"time"
)

func write(h *History, value string, outcome Outcome) {
	h.Write(1, "k", value, func() Outcome { return outcome })
}

func read(h *History, value string) {
	_, _ = h.Read(2, "k", func() (string, error) { return value, nil })
}

func TestCheck(t *testing.T) {
	for name, test := range map[string]struct {
		do func(*History)
		ok bool
	}{
		"acknowledged writes are read":           {func(h *History) { read(h, ""); write(h, "a", Done); read(h, "a"); write(h, "b", Done); read(h, "b") }, true},
		"an acknowledged write is lost":          {func(h *History) { write(h, "a", Done); read(h, "") }, false},
		"a read goes back":                       {func(h *History) { write(h, "a", Done); write(h, "b", Done); read(h, "a") }, false},
		"a refused write is read":                {func(h *History) { write(h, "a", Refused); read(h, "a") }, false},
		"an unknown write takes effect later":    {func(h *History) { write(h, "a", Unknown); read(h, ""); read(h, "a") }, true},
		"an unknown write never takes effect":    {func(h *History) { write(h, "a", Unknown); read(h, ""); write(h, "b", Done); read(h, "b") }, true},
		"an unknown write takes effect and goes": {func(h *History) { write(h, "a", Unknown); read(h, "a"); read(h, "") }, false},
		"keys do not mix": {func(h *History) {
			write(h, "a", Done)
			h.Write(1, "other", "b", func() Outcome { return Done })
			read(h, "a")
		}, true},
		"a failed read says nothing": {func(h *History) {
			_, _ = h.Read(2, "k", func() (string, error) { return "x", errors.New("no leader") })
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			h := New()
			test.do(h)
			if err := h.Check(time.Minute); (err == nil) != test.ok {
				t.Errorf("Check = %v, want linearizable %t", err, test.ok)
			}
		})
	}
}
