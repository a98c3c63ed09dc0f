package worker

import (
	"context"
	"errors"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/network"
)

// attach waits for the node's address block for as long as it takes; other errors have their time.
func (f *fleet) attach(wait context.Context, t *task) (network.Attachment, error) {
	pause := backoff{min: f.cfg.Limits.RetryMin, max: f.cfg.Limits.RetryMax}
	for until := time.Now().Add(f.cfg.Limits.PullFor); ; {
		f.mu.Lock()
		configured := f.configured
		f.mu.Unlock()
		at, err := f.cfg.Network.Attach(wait, f.requestOf(t))
		if wait.Err() != nil {
			return at, wait.Err()
		}
		if err == nil {
			f.mu.Lock()
			if address := at.Address.String(); at.Address.IsValid() && address != t.status.GetAddress() {
				f.setState(t, t.status.GetState(), func(s *swarmpb.TaskStatus) { s.Address = address })
			}
			f.mu.Unlock()
			return at, nil
		}
		if errors.Is(err, network.ErrUnsupported) || errors.Is(err, network.ErrUnsuited) {
			return at, finalError{err}
		} else if errors.Is(err, network.ErrNotConfigured) {
			f.say(t, f.attachWaitsFor(err), "")
			until = time.Now().Add(f.cfg.Limits.PullFor)
		} else if f.sayTrouble(t, explain(err)); !time.Now().Before(until) {
			return at, err
		}
		timer := time.NewTimer(pause.next(nil))
		select {
		case <-configured:
		case <-timer.C:
		case <-wait.Done():
		}
		timer.Stop()
	}
}

// attachWaitsFor says what the managers have yet to tell for a task to be attached.
func (f *fleet) attachWaitsFor(err error) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.config.GetUplinkBlock() == "" {
		return "waiting for the node's address block"
	}
	return "waiting: " + explain(err)
}

// requestOf is what a task needs of the network.
func (f *fleet) requestOf(t *task) network.Request {
	assigned, template, _ := f.look(t)
	container := template.GetSpec().GetContainer()
	hostname, err := f.fieldsOf(assigned).expand(container.GetHostname())
	if err != nil {
		hostname = "" // which specOf has refused, or will
	}
	return network.Request{TaskID: t.id, Networks: assigned.GetNetworks(), DNS: container.GetDns(), Hostname: hostnameOf(assigned, hostname), Guest: guestOf(template)}
}

// learnPorts finds the host ports of a task that was started just before this process began.
func (f *fleet) learnPorts(ctx context.Context, t *task) {
	_, template, status := f.look(t)
	if len(status.GetHostPorts()) == len(template.GetHostPorts()) {
		return
	}
	ports, err := f.cfg.Network.Publish(ctx, t.id, template.GetHostPorts())
	if err != nil {
		f.log.Warn("cannot find the ports of a task", "task", t.id, "error", err)
		return
	}
	f.update(t, status.GetState(), func(s *swarmpb.TaskStatus) { s.HostPorts = ports })
}
