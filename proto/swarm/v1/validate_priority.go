package swarmpb

import "fmt"

// MaxPriority is the highest priority of a service; the lowest is its negative.
const MaxPriority = 1_000_000

func (p *problems) priority(n int32) {
	if n < -MaxPriority || n > MaxPriority {
		p.addf("priority", fmt.Sprintf("use %d to %d", -MaxPriority, MaxPriority), "%d is out of range", n)
	}
}
