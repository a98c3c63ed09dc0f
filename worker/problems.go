package worker

import (
	"maps"
	"slices"
	"sync"
)

// problems are conditions of this host that an operator should see, by what they are about.
type problems struct {
	mu    sync.Mutex
	about map[string]string
}

func newProblems() *problems { return &problems{about: map[string]string{}} }

// set notes a problem, or with a nil error its end. It reports whether that is news.
func (p *problems) set(about string, err error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	before, had := p.about[about]
	if err == nil {
		delete(p.about, about)
		return had
	}
	text := about + ": " + oneLine(err.Error())
	p.about[about] = text
	return before != text
}

func (p *problems) list() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Sorted(maps.Values(p.about))
}
