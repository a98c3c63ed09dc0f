// Package coexist has the host's other firewalls let pass what the cluster forwards. A packet that is accepted in our table
// is dropped all the same by another one whose FORWARD chain drops what it does not know: Docker's, ufw's, firewalld's.
//
// It puts accepts for our links where each of them wants such to be: Docker's chain DOCKER-USER, the head of FORWARD of other
// iptables, firewalld's zone "trusted"; they carry a mark of ours, and Teardown takes them away. Those accepts open nothing:
// what may come to a task is for worker/ingress's own table to say. Chains that an administrator wrote by hand it does not
// touch: it says which rules to add.
package coexist

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
)

// Config is what a Coexist needs.
type Config struct {
	Logger *slog.Logger
	// Links are the names of our links; a final * stands for any rest.
	Links []string
}

// Coexist looks after other firewalls. All methods are safe for concurrent use.
type Coexist struct {
	cfg       Config
	firewalls []firewall
	mu        sync.Mutex
}

// firewall is one kind of other software.
type firewall interface {
	name() string
	// open puts the accepts where they are missing, and says how many; problems are lines for people.
	open() (added int, problems []string, err error)
	// close takes them away.
	close() error
}

// New changes nothing.
func New(cfg Config) *Coexist {
	return &Coexist{cfg: cfg, firewalls: []firewall{
		&nft{links: cfg.Links}, &legacy{links: cfg.Links, run: runLegacy}, &firewalld{links: cfg.Links, dial: dialSystemBus},
	}}
}

// Check puts accepts where they are needed and missing, and says what it could not do, one line each. It is called from time
// to time, as other software reloads its rules.
func (c *Coexist) Check() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var problems []string
	for _, f := range c.firewalls {
		added, of, err := f.open()
		if err != nil {
			of = append(of, fmt.Sprintf("cannot look whether %s lets the cluster's packets pass: %v", f.name(), err))
		}
		if added > 0 {
			c.cfg.Logger.Info("another firewall lets the cluster's packets pass now", "firewall", f.name(), "rules", added)
		}
		problems = append(problems, of...)
	}
	return problems
}

// Teardown takes the accepts away, also a former process's.
func (c *Coexist) Teardown() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, f := range c.firewalls {
		if err := f.close(); err != nil {
			errs = append(errs, fmt.Errorf("remove our rules from %s: %w", f.name(), err))
		}
	}
	return errors.Join(errs...)
}

// plus writes a name with a final * as iptables and firewalld do.
func plus(link string) string {
	if rest, ok := strings.CutSuffix(link, "*"); ok {
		return rest + "+"
	}
	return link
}
