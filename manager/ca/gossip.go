package ca

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const (
	// GossipKeySize is the size of a key of gossip, in bytes.
	GossipKeySize = 32
	// MaxGossipKeys is how many a node accepts at once.
	MaxGossipKeys = 3
	// rotateEvery is how often the leader looks whether a step of a rotation is due.
	rotateEvery = time.Second
	// rotateRetryMax is the longest pause after steps that failed.
	rotateRetryMax = time.Minute
	// commitTimeout bounds one step's write.
	commitTimeout = 10 * time.Second
)

// Lead rotates the keys of gossip while this manager leads, until ctx ends or the term is over. acked tells up to
// which index a node has applied all that concerns it, false for a node without a session.
//
// The keys of the cluster's row are in the order in which they were made, and which one is primary says how far a
// rotation has come, so that any leader goes on with it:
//
//	only the primary one           a new key follows it once the primary is as old as the interval
//	one that follows the primary   it becomes the primary one once every live node accepts it
//	one before the primary         it goes once every live node sends under the primary one
//
// A live node is one that is READY; others hold nothing up, and get the keys with their next session.
func (s *Server) Lead(ctx context.Context, leader store.Leader, acked func(nodeID string) (uint64, bool)) error {
	pause := rotateEvery
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
		err := s.rotate(ctx, leader, acked)
		var conflict *store.ConflictError
		switch {
		case errors.Is(err, store.ErrStaleTerm):
			return err
		case err == nil || errors.As(err, &conflict):
			pause = rotateEvery
		case ctx.Err() == nil:
			pause = min(2*pause, rotateRetryMax)
			s.cfg.Logger.Warn("could not rotate the keys of gossip; trying again", "error", err, "pause", pause)
		}
		timer.Reset(pause)
	}
}

// rotate takes the step that is due, if any.
func (s *Server) rotate(ctx context.Context, leader store.Leader, acked func(nodeID string) (uint64, bool)) error {
	view := s.cfg.Store().View()
	cluster := view.Cluster()
	if cluster == nil {
		return nil
	}
	now := s.cfg.Now()
	step := keyStep(cluster, now)
	if step == keyNone || step.spreads() && !spread(view, cluster.GetMeta().GetVersion(), acked) {
		return nil
	}
	next := swarmpb.Clone(cluster)
	keys, err := step.apply(next.GetGossipKeys(), now)
	if err != nil {
		return err
	}
	next.GossipKeys = keys
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	_, err = leader.Propose(ctx, &swarmpb.Proposal{
		Term: leader.Term(), Now: now.UnixNano(),
		Guards: []*swarmpb.Guard{{Key: swarmpb.ClusterKey(cluster.GetId()), Version: cluster.GetMeta().GetVersion()}},
		Writes: []*swarmpb.Write{put(&swarmpb.Row{Row: &swarmpb.Row_Cluster{Cluster: next}})},
	})
	if err != nil {
		return fmt.Errorf("%s: %w", step, err)
	}
	s.cfg.Logger.Info("rotation of the gossip keys", "step", string(step), "keys", len(keys))
	return nil
}

// rotationStep is one write of a rotation.
type rotationStep string

const (
	keyNone    rotationStep = ""
	keyFirst   rotationStep = "make the first gossip key"
	keyAdd     rotationStep = "add a gossip key"
	keyPromote rotationStep = "make the newest gossip key primary"
	keyRetire  rotationStep = "remove old gossip keys"
)

// spreads says whether the step waits until every live node has what the row says now.
func (s rotationStep) spreads() bool { return s == keyPromote || s == keyRetire }

// keyStep is the next step for the keys of the row, whoever made them so.
func keyStep(cluster *swarmpb.Cluster, now time.Time) rotationStep {
	keys := cluster.GetGossipKeys()
	primary := slices.IndexFunc(keys, (*swarmpb.GossipKey).GetPrimary)
	switch {
	case len(keys) == 0:
		return keyFirst
	case primary < len(keys)-1: // also where none is primary
		return keyPromote
	case primary > 0:
		return keyRetire
	}
	// A clock that was wrong when the key was made does not stop the rotation.
	age, interval := now.Sub(time.Unix(0, keys[primary].GetSince())), rotationInterval(cluster.GetSpec())
	if age >= interval || age <= -interval {
		return keyAdd
	}
	return keyNone
}

// apply makes the step on keys, which it may change.
func (s rotationStep) apply(keys []*swarmpb.GossipKey, now time.Time) ([]*swarmpb.GossipKey, error) {
	switch s {
	case keyFirst, keyAdd:
		key, err := newGossipKey(now)
		if err != nil {
			return nil, err
		}
		key.Primary = s == keyFirst
		return append(keys, key), nil
	case keyPromote:
		for i, key := range keys {
			last := i == len(keys)-1
			if key.GetPrimary() != last {
				key.Primary, key.Since = last, now.UnixNano()
			}
		}
		return keys, nil
	case keyRetire:
		return keys[len(keys)-1:], nil
	}
	return keys, nil
}

// spread says whether every live node has applied the version.
func spread(view *store.View, version uint64, acked func(nodeID string) (uint64, bool)) bool {
	for node := range view.Nodes() {
		if view.NodeStatus(node.GetId()).GetState() != swarmpb.NodeState_NODE_STATE_READY {
			continue
		}
		if applied, ok := acked(node.GetId()); !ok || applied < version {
			return false
		}
	}
	return true
}

func newGossipKey(now time.Time) (*swarmpb.GossipKey, error) {
	key := make([]byte, GossipKeySize)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("make a gossip key: %w", err)
	}
	return &swarmpb.GossipKey{Key: key, Since: now.UnixNano()}, nil
}

// rotationInterval is how long a key stays primary by the cluster's settings.
func rotationInterval(spec *swarmpb.ClusterSpec) time.Duration {
	d := spec.GetGossipKeyRotation()
	if d == nil || d.AsDuration() <= 0 {
		return swarmpb.DefaultGossipKeyRotation
	}
	return max(d.AsDuration(), swarmpb.MinGossipKeyRotation)
}
