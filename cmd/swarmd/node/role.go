package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/swarmd/swarmd/manager"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// Pauses between tries.
const (
	managerRetryMin = time.Second
	managerRetryMax = 30 * time.Second
	// managerHealthy is how long a manager must have worked for its next failure to count as the first.
	managerHealthy = time.Minute
	roleRetryMin   = time.Second
	roleRetryMax   = 30 * time.Second
	rememberRetry  = time.Minute
)

// manage keeps this host's manager as the identity on disk has it: it runs while that is a manager's, and is gone,
// with all its data, while it is a worker's. So whatever a crash cuts short, the next start ends it. The worker is
// never touched.
func (m *member) manage(ctx context.Context) error {
	defer func() { _ = m.closePart() }() // one that was opened and did not come to run
	pause := backoff{min: managerRetryMin, max: managerRetryMax}
	for ctx.Err() == nil {
		var err error
		began := time.Now()
		role, opened := m.hosts()
		if role == roleManager || opened {
			err = m.host(ctx)
		} else if err = m.clear(); err == nil {
			_ = m.await(ctx, func() bool { return m.role == roleManager })
		}
		if err == nil || time.Since(began) > managerHealthy {
			pause.reset()
		}
		if now, _ := m.hosts(); err == nil || ctx.Err() != nil || now != role {
			continue // what is to be done now is something else
		}
		wait := pause.next()
		m.node.log.Error("this host's manager does not work; trying again", "error", err, "pause", wait)
		m.fail(err)
		// Another role is another thing to do, and at once: somebody may wait for it.
		paused, cancel := context.WithTimeout(ctx, wait)
		_ = m.await(paused, func() bool { return m.role != role })
		cancel()
	}
	return ctx.Err()
}

// hosts is the role of the identity on disk, and whether a manager is open: also one whose role has just changed has to
// be stopped before its data may go.
func (m *member) hosts() (role swarmpb.NodeRole, opened bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.role, m.part != nil
}

// fail shows why the manager does not work.
func (m *member) fail(err error) {
	m.update(func() { m.trouble = err.Error() })
}

// alone says whether this host knows of no other manager.
func (m *member) alone() bool {
	return !slices.ContainsFunc(m.state().Managers, func(address string) bool { return address != m.advertise })
}

func (m *member) isManager() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.role == roleManager
}

// isPromoted says whether this node is to be a manager and is none yet.
func (m *member) isPromoted() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.wanted == roleManager && m.role != roleManager
}

// host runs the manager until ctx ends or it is to be none any more; an error is of a manager that failed.
func (m *member) host(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		if m.await(ctx, func() bool { return m.role != roleManager }) == nil {
			cancel()
		}
	}()
	defer func() { cancel(); <-watched }()
	p, _ := m.now()
	if p == nil {
		var err error
		if p, err = m.openOrRejoin(ctx); err != nil {
			return err
		}
	}
	m.update(func() { m.trouble = "" })
	m.node.log.Info("this host's manager starts", "address", m.advertise)
	err := p.run(ctx)
	m.update(func() { m.part = nil })
	m.node.log.Info("this host's manager has stopped")
	return err
}

// openOrRejoin opens the manager. Where its data is damaged or missing it begins again from that of the others, once
// their leader has taken its vote: until then what is there stays, as it may be all that there is.
func (m *member) openOrRejoin(ctx context.Context) (*part, error) {
	p, err := m.openResumed()
	if !manager.IsDataError(err) && !errors.Is(err, errDataMissing) {
		return p, err
	}
	m.node.log.Error("this host's manager cannot use its data; asking the others to do without its vote", "error", err)
	m.fail(fmt.Errorf("the other managers are asked to do without its vote: %w", err))
	if err := manager.Rejoin(ctx, m.managerConfig()); err != nil {
		return nil, err
	}
	if p, err = m.open(); err == nil {
		m.update(func() { m.resumed = false })
	}
	return p, err
}

var errDataMissing = errors.New("its data is missing")

// openResumed opens a manager unless it may have taken part before, and has lost what it knew then.
func (m *member) openResumed() (*part, error) {
	m.mu.Lock()
	resumed := m.resumed
	m.mu.Unlock()
	if dir := m.node.managerDir(); resumed && !manager.HasData(dir) {
		return nil, fmt.Errorf("the manager's directory %s: %w", dir, errDataMissing)
	}
	return m.open()
}

// clear removes what a former manager has left. It must not be called while the managers may count this node as one
// of theirs: the identity on disk is a worker's, and no renewal is under way (see renewable).
func (m *member) clear() error {
	dir := m.node.managerDir()
	if _, err := os.Lstat(dir); err == nil {
		m.node.log.Info("removing the data of this host's former manager", "dir", dir)
	}
	if err := os.RemoveAll(dir); err != nil {
		return m.node.explain(fmt.Errorf("remove the data of this host's former manager: %w", err))
	}
	m.update(func() { m.clearing, m.resumed, m.trouble = false, false, "" })
	return nil
}

// want takes the role that the managers want this node to have.
func (m *member) want(role swarmpb.NodeRole) {
	m.update(func() { m.wanted = role })
}

// followRole has the certificate renewed while its role is not the one that is wanted. The CA may stay with the old
// one for a while: a manager keeps its certificate until it is out of Raft.
func (m *member) followRole(ctx context.Context) error {
	pause := backoff{min: roleRetryMin, max: roleRetryMax}
	agreed := func() bool { return m.wanted == swarmpb.NodeRole_NODE_ROLE_UNSPECIFIED || m.wanted == m.role }
	for {
		pause.reset()
		if err := m.await(ctx, func() bool { return !agreed() }); err != nil {
			return err
		}
		m.node.log.Info("this node is to have another role; asking for a new certificate")
		changed, stop := context.WithCancel(ctx)
		go func() {
			defer stop()
			_ = m.await(changed, agreed)
		}()
		for changed.Err() == nil {
			select {
			case m.wake <- struct{}{}:
			case <-changed.Done():
			}
			sleep(changed, pause.next())
		}
		stop()
	}
}

func (m *member) renewer() *wire.Renewer {
	return &wire.Renewer{
		Credentials: m.creds, Dir: m.node.identityDir(), Managers: m.managerAddresses, Self: m.renewSelf, Wake: m.wake, Renewed: m.renewed,
		Logger: m.node.log.With("part", "identity"),
	}
}

// renewed takes an identity that is on disk by now.
func (m *member) renewed(id wire.Identity) {
	m.update(func() {
		if id.Role != roleManager && m.role == roleManager {
			m.clearing = true
		}
		m.role = id.Role
	})
}

// renewable: while a former manager is being removed, no certificate is asked for, as it might be a new manager's: the
// others could then count on the data that is about to go.
func (m *member) renewable() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.clearing
}

// renewSelf asks this host's own CA. One that is to be a manager no more asks the others, as it is out of Raft.
func (m *member) renewSelf(ctx context.Context, req *swarmpb.RenewCertificateRequest) (*swarmpb.RenewCertificateResponse, error) {
	m.mu.Lock()
	p, wanted := m.part, m.wanted
	m.mu.Unlock()
	if p == nil || wanted == roleWorker || !m.renewable() {
		return nil, wire.NotManager()
	}
	return p.manager.RenewCertificate(ctx, req)
}

// managerAddresses are those to ask for a new certificate, the one that the session is with first.
func (m *member) managerAddresses() []string {
	if !m.renewable() {
		return nil
	}
	var out []string
	if a := m.agent.ConnectedTo(); a != "" {
		out = append(out, a)
	}
	for _, a := range m.state().Managers {
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// remember keeps the list of managers in node.json as the agent has learned it: those that this node joined at may
// all be gone by the next start.
func (m *member) remember(ctx context.Context) error {
	saved := m.state().Managers
	for {
		if err := m.await(ctx, func() bool { return !slices.Equal(m.managers, saved) }); err != nil {
			return err
		}
		st := m.state()
		if err := m.node.saveState(st); err != nil {
			m.node.log.Warn("cannot remember the cluster's managers; trying again", "error", err, "pause", rememberRetry)
			sleep(ctx, rememberRetry)
			continue
		}
		saved = st.Managers
	}
}

// sleep waits for d, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// serving is the manager that answers calls now.
func (m *member) serving() (*part, error) {
	m.mu.Lock()
	p, role, trouble := m.part, m.role, m.trouble
	m.mu.Unlock()
	switch {
	case p != nil && !p.stopped():
		return p, nil
	case m.node.stopping():
		return nil, errStopping()
	case role != roleManager && p == nil:
		return nil, wire.NotManager()
	case role != roleManager:
		return nil, wire.Errorf(wire.CodeUnavailable, "this host is a manager no more; try another manager")
	case trouble != "":
		return nil, wire.Errorf(wire.CodeUnavailable, "this host's manager does not work: %s; try another manager", trouble)
	}
	return nil, wire.Errorf(wire.CodeUnavailable, "this host's manager is starting; try again, or try another manager")
}

func errStopping() error {
	return wire.Errorf(wire.CodeUnavailable, "this manager is stopping; try another manager")
}
