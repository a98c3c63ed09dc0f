package wire

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// selfCA is a CA in this process with certificates of an hour of life.
type selfCA struct {
	*testCA
	mu       sync.Mutex
	role     swarmpb.NodeRole
	failures int
	calls    int
	told     int
}

func (ca *selfCA) with(f func()) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	f()
}

func (ca *selfCA) seen() (calls, told int) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return ca.calls, ca.told
}

func (ca *selfCA) renew(ctx context.Context, req *swarmpb.RenewCertificateRequest) (*swarmpb.RenewCertificateResponse, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.calls++
	if ca.failures > 0 {
		ca.failures--
		return nil, Errorf(CodeUnavailable, "no leader")
	}
	p, _ := Peer(ctx)
	key, err := ParseCSR(req.GetCsr())
	if err != nil {
		return nil, err
	}
	now := time.Now()
	chain := ca.leaf(key, ca.names(p.NodeID, ca.role), now.Add(-Backdate), now.Add(time.Hour))
	return &swarmpb.RenewCertificateResponse{Role: ca.role, CertificateChain: chain}, nil
}

// start runs a Renewer of a manager until stop.
func (ca *selfCA) start(t *testing.T, id Identity, wake <-chan struct{}) (r *Renewer, stop func() error) {
	creds := NewCredentials()
	creds.Set(id)
	r = &Renewer{
		Credentials: creds, Dir: t.TempDir(), Managers: func() []string { return nil }, Logger: slog.New(slog.DiscardHandler),
		Self: ca.renew, Wake: wake, Renewed: func(Identity) { ca.with(func() { ca.told++ }) },
		Rand: func() float64 { return 0.5 },
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	return r, func() error { cancel(); return <-done }
}

func TestRenewer_DaysGoBy_RenewsWithinLifeAndSaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := &selfCA{testCA: newTestCA(t, "c1"), role: managerRole}
		wake := make(chan struct{})
		r, stop := ca.start(t, ca.identity("m1", managerRole), wake)
		hour := func() (calls, told int) {
			time.Sleep(time.Hour)
			synctest.Wait()
			return ca.seen()
		}
		for range 48 {
			calls, _ := hour()
			id, _ := r.Credentials.Identity()
			if id.Expired(time.Now()) {
				t.Fatalf("expired after %d renewals", calls)
			}
			saved, err := LoadIdentity(r.Dir)
			if calls > 0 && (err != nil || !saved.Expires.Equal(id.Expires)) {
				t.Fatalf("on disk %v, %v; in use %v", saved.Expires, err, id.Expires)
			}
		}
		before, told := ca.seen()
		if before < 70 || before > 78 || told != before {
			t.Errorf("%d renewals in 48 hours, told of %d; 65 %% of an hour is 74", before, told)
		}
		ca.with(func() { ca.failures = 5 })
		if calls, _ := hour(); calls < before+6 {
			t.Errorf("%d calls after five failures", calls-before)
		}
		ca.with(func() { ca.role = workerRole })
		wake <- struct{}{}
		synctest.Wait()
		if id, _ := r.Credentials.Identity(); id.Role != workerRole {
			t.Errorf("woken, the role is %v", id.Role)
		}
		if err := stop(); !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	})
}

func TestRenewer_WokenBetweenTries_TriesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := &selfCA{testCA: newTestCA(t, "c1"), role: managerRole, failures: 20}
		wake := make(chan struct{})
		r, stop := ca.start(t, ca.identityUntil("m1", managerRole, time.Now().Add(-time.Hour)), wake)
		time.Sleep(20 * time.Minute) // the pause has grown to minutes by now
		synctest.Wait()
		calls, _ := ca.seen()
		ca.with(func() { ca.failures = 0 })
		wake <- struct{}{}
		synctest.Wait()
		if after, told := ca.seen(); after != calls+1 || told != 1 {
			t.Errorf("%d tries after it was woken, told of %d", after-calls, told)
		}
		if id, err := LoadIdentity(r.Dir); err != nil || id.Expired(time.Now()) {
			t.Errorf("saved %v, %v", id.Expires, err)
		}
		if err := stop(); !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	})
}

func TestRenewer_Renewed_IsToldOnceItIsSaved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := &selfCA{testCA: newTestCA(t, "c1"), role: managerRole}
		creds := NewCredentials()
		creds.Set(ca.identity("m1", workerRole))
		wake, told := make(chan struct{}, 1), false
		r := &Renewer{
			Credentials: creds, Dir: t.TempDir(), Managers: func() []string { return nil }, Logger: slog.New(slog.DiscardHandler),
			Self: ca.renew, Wake: wake,
		}
		r.Renewed = func(id Identity) {
			saved, err := LoadIdentity(r.Dir)
			if told = true; err != nil || saved.Role != id.Role || id.Role != managerRole {
				t.Errorf("told of %v with %v on disk: %v", id.Role, saved.Role, err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		wake <- struct{}{}
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) || !told {
			t.Errorf("Run returned %v, told: %v", err, told)
		}
	})
}

func TestRenewer_ManagerOffPastItsCertificate_RenewsItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := &selfCA{testCA: newTestCA(t, "c1"), role: managerRole}
		r, stop := ca.start(t, ca.identityUntil("m1", managerRole, time.Now().Add(-time.Hour)), nil)
		synctest.Wait()
		if id, _ := r.Credentials.Identity(); id.Expired(time.Now()) || id.NodeID != "m1" {
			t.Errorf("still %v", id.Expires)
		}
		if err := stop(); !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	})
}

func TestRenewer_FieldsMissing_IsAnError(t *testing.T) {
	if err := (&Renewer{}).Run(t.Context()); err == nil {
		t.Error("ran with nothing")
	}
}

func TestRenewAt_AnyDraw_IsBetweenHalfAndFourFifthsOfLife(t *testing.T) {
	ca := newTestCA(t, "c1")
	id := ca.identityUntil("n1", workerRole, time.Now().Add(2*time.Hour)) // begins 3 h before its end: issued for 2 h
	rapid.Check(t, func(t *rapid.T) {
		at := RenewAt(id, rapid.Float64Range(0, 0.9999).Draw(t, "draw"))
		if left := id.Expires.Sub(at); left > time.Hour || left < 24*time.Minute {
			t.Fatalf("%v before the end of a life of 2 h", left)
		}
	})
}
