package main

import (
	"fmt"
	"strings"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// healthState is what probes say of a task: starting, healthy, unhealthy or not ready; empty where nobody asks.
func healthState(h *swarmpb.HealthStatus) string {
	switch {
	case h == nil:
		return ""
	case h.GetState() == swarmpb.HealthState_HEALTH_STATE_UNHEALTHY, h.GetState() == swarmpb.HealthState_HEALTH_STATE_STARTING:
		return h.GetState().Name()
	case h.GetNotReady():
		return "not ready"
	case h.GetState() == swarmpb.HealthState_HEALTH_STATE_UNSPECIFIED:
		return "ready" // only readiness is asked
	}
	return h.GetState().Name()
}

// healthWord is the state with the failures in a row: not ready (3 failures).
func healthWord(h *swarmpb.HealthStatus) string {
	word := healthState(h)
	failing := h.GetFailing()
	if word == "not ready" || failing == 0 {
		failing = max(failing, h.GetNotReadyFailing())
	}
	if failing > 0 {
		word += " (" + count(failing, "failure") + ")"
	}
	return word
}

// healthTable lists tasks with what probes say of them.
func (a *app) healthTable(whole bool) table[taskRow] {
	return table[taskRow]{func(r taskRow) string { return r.ID }, []column[taskRow]{
		{"ID", func(r taskRow) string { return r.shownID(whole) }, false},
		{"NAME", taskRow.shownName, false},
		{"NODE", func(r taskRow) string { return r.Node }, true},
		{"STATE", func(r taskRow) string { return strings.TrimSpace(r.State + " " + a.ago(r.since)) }, false},
		{"HEALTH", func(r taskRow) string {
			if r.health == nil {
				return "-"
			}
			return strings.TrimSpace(fmt.Sprintf("%s %s", healthWord(r.health), a.ago(r.health.GetAt())))
		}, false},
		{"OUTPUT", func(r taskRow) string { return strings.Join(strings.Fields(clean(r.HealthOutput)), " ") }, true},
	}}
}

// prettyHealth is what probes say of one task.
func prettyHealth(a *app, p printer, h *swarmpb.HealthStatus) {
	if h == nil {
		return
	}
	p.line("Health", strings.TrimSpace(healthWord(h)+" "+a.ago(h.GetAt())))
	for _, line := range strings.Split(strings.TrimSpace(h.GetOutput()), "\n") {
		p.line("Last probe said", line)
	}
}
