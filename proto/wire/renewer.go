package wire

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"
)

// Bounds of the Renewer.
const (
	// A certificate is renewed at a random share of its life between these two, so that a cluster's nodes,
	// which joined together, do not come together.
	renewFrom, renewTo = 0.5, 0.8
	renewRetryMin      = time.Second
	renewRetryMax      = 5 * time.Minute
	// renewLook is how often the wall clock is looked at: timers stand still while a host sleeps.
	renewLook = time.Hour
)

// Renewer keeps a node's certificate alive: it renews, saves and swaps. All fields but the optional ones are
// required.
type Renewer struct {
	Credentials *Credentials
	// Dir is where the identity is saved.
	Dir string
	// Managers returns the addresses to ask, best first.
	Managers func() []string
	Logger   *slog.Logger
	// Renewed, if set, is told of each new identity, once it is in use and saved: what is begun upon it is found again
	// by the next start. Its role may be another than before.
	Renewed func(Identity)
	// Self, if set, is the CA in this process, asked before any other: a manager can always renew itself, though
	// its certificate has expired and nobody would talk to it.
	Self RenewFunc
	// Wake, if set, has the certificate renewed at once, or tried again at once: the node's role has changed.
	Wake <-chan struct{}
	// Rand draws from [0, 1); nil: math/rand.
	Rand func() float64
}

// Run renews until ctx ends. It outlives refusals and unreachable managers, which it logs: the node is still
// itself until the certificate's end, and by proof of its key even after it.
func (r *Renewer) Run(ctx context.Context) error {
	if r.Credentials == nil || r.Managers == nil || r.Logger == nil || r.Dir == "" {
		return errors.New("renewer: credentials, directory, managers and logger are required")
	}
	draw := r.Rand
	if draw == nil {
		draw = rand.Float64
	}
	for {
		id, ok := r.Credentials.Identity()
		if !ok {
			return errNoCluster
		}
		if err := r.sleepUntil(ctx, RenewAt(id, draw())); err != nil {
			return err
		}
		if err := r.retry(ctx, draw, "renew certificate", r.renew); err != nil {
			return err
		}
		if err := r.retry(ctx, draw, "save certificate", r.save); err != nil {
			return err
		}
		if id, ok := r.Credentials.Identity(); ok && r.Renewed != nil {
			r.Renewed(id)
		}
	}
}

// RenewAt is when to renew, for a draw from [0, 1).
func RenewAt(id Identity, draw float64) time.Time {
	life := id.Expires.Sub(id.Issued())
	return id.Issued().Add(time.Duration(float64(life) * (renewFrom + draw*(renewTo-renewFrom))))
}

func (r *Renewer) renew(ctx context.Context) error {
	id, err := r.ask(ctx)
	if err != nil {
		return err
	}
	r.Credentials.Set(id)
	r.Logger.Info("renewed the node's certificate", "node", id.NodeID, "role", RoleOU(id.Role), "expires", id.Expires)
	return nil
}

func (r *Renewer) ask(ctx context.Context) (Identity, error) {
	old, ok := r.Credentials.Identity()
	if r.Self == nil || !ok {
		return Renew(ctx, r.Credentials, r.Managers())
	}
	inside := PeerInfo{Caller: callerOfRole(old.Role), NodeID: old.NodeID, ClusterID: old.ClusterID}
	id, err := renewBy(WithPeer(ctx, inside), old, r.Self)
	if err == nil {
		return id, nil
	}
	id, other := Renew(ctx, r.Credentials, r.Managers())
	if other != nil {
		return Identity{}, errors.Join(err, other)
	}
	return id, nil
}

func (r *Renewer) save(context.Context) error {
	id, ok := r.Credentials.Identity()
	if !ok {
		return errNoCluster
	}
	return SaveIdentity(r.Dir, id)
}

func (r *Renewer) retry(ctx context.Context, draw func() float64, what string, do func(context.Context) error) error {
	pause := renewRetryMin
	for {
		err := do(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.Logger.Warn("could not "+what+"; trying again", "error", err, "pause", pause)
		timer := time.NewTimer(pause/2 + time.Duration(draw()*float64(pause)/2))
		select {
		case <-timer.C:
		case <-r.Wake:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		pause = min(2*pause, renewRetryMax)
	}
}

// sleepUntil goes by the wall clock, as certificates do.
func (r *Renewer) sleepUntil(ctx context.Context, at time.Time) error {
	for {
		left := at.Round(0).Sub(time.Now().Round(0))
		if left <= 0 {
			return ctx.Err()
		}
		timer := time.NewTimer(min(left, renewLook))
		select {
		case <-timer.C:
		case <-r.Wake:
			timer.Stop()
			return ctx.Err()
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}
