package replica

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// setAsideKept is how many directories with damaged data are kept.
const setAsideKept = 2

// AskRejoin asks the manager at the other end of conn to take this one's vote, whose data is damaged. Once it has
// succeeded this one may begin again from nothing: no majority counts on what it had. wire.ErrNotLeader: ask another
// manager. wire.ErrFailedPrecondition: the others have no majority without it, and the data must stay.
func AskRejoin(ctx context.Context, conn *grpc.ClientConn) error {
	if _, err := swarmpb.NewReplicaClient(conn).Rejoin(ctx, &swarmpb.RejoinRequest{}); err != nil {
		return fmt.Errorf("ask to rejoin: %w", wire.FromStatus(err))
	}
	return nil
}

// Rejoin implements swarmpb.ReplicaServer.
func (s service) Rejoin(ctx context.Context, _ *swarmpb.RejoinRequest) (*swarmpb.RejoinResponse, error) {
	if err := s.replica.Rejoin(ctx); err != nil {
		return nil, wire.ToStatus(err)
	}
	return &swarmpb.RejoinResponse{}, nil
}

// Rejoin takes the vote from the manager that calls, see Config.Peer, and returns when that is committed: what was
// committed before is then on a majority of the others. It refuses while those that answer are no such majority.
func (r *Replica) Rejoin(ctx context.Context) error {
	peer, ok := r.cfg.Peer(ctx)
	if !ok || peer.NodeID == "" {
		return wire.Errorf(wire.CodeUnauthenticated, "rejoin: the caller is not known")
	}
	id := raft.ServerID(peer.NodeID)
	return r.changeMembers(ctx, "take the vote from manager "+peer.NodeID, func(servers []raft.Server) (configurationStep, error) {
		s := find(servers, id)
		if s == nil || s.Suffrage != raft.Voter {
			return nil, nil
		}
		if peer.NodeID == r.cfg.NodeID {
			return nil, wire.Errorf(wire.CodeFailedPrecondition, "it leads")
		}
		others := slices.DeleteFunc(voters(servers), func(v raft.Server) bool { return v.ID == id })
		answering := 0
		for _, v := range others {
			if v.ID == raft.ServerID(r.cfg.NodeID) || r.isRecent(r.progress.of(v.ID, r.node.Load().CurrentTerm())) {
				answering++
			}
		}
		if answering < len(others)/2+1 {
			return nil, wire.Errorf(wire.CodeFailedPrecondition,
				"%d of the %d other managers with a vote answer, and %d must; start them first", answering, len(others), len(others)/2+1)
		}
		return demotion(id), nil
	})
}

// SetAside renames a replica's directory, so that an empty one can take its place, and returns its new path:
// dir.damaged-N with N counting up. The newest two are kept. A directory that is not there is none.
func SetAside(dir string) (moved string, err error) {
	var old []string
	siblings, err := os.ReadDir(filepath.Dir(dir))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("set damaged data aside: %w", err)
	}
	prefix := filepath.Base(dir) + ".damaged-"
	for _, sibling := range siblings {
		if strings.HasPrefix(sibling.Name(), prefix) {
			old = append(old, filepath.Join(filepath.Dir(dir), sibling.Name()))
		}
	}
	number := func(path string) int {
		n, _ := strconv.Atoi(strings.TrimPrefix(filepath.Base(path), prefix))
		return n
	}
	slices.SortFunc(old, func(a, b string) int { return cmp.Compare(number(b), number(a)) }) // newest first
	next := 1
	if len(old) > 0 {
		next = number(old[0]) + 1
	}
	moved = dir + ".damaged-" + strconv.Itoa(next)
	if err := os.Rename(dir, moved); errors.Is(err, os.ErrNotExist) {
		return "", nil
	} else if err != nil {
		return "", fmt.Errorf("set damaged data aside: %w", err)
	}
	if err := syncDir(filepath.Dir(dir)); err != nil {
		return moved, fmt.Errorf("set damaged data aside: %w", err)
	}
	for _, path := range old[min(len(old), setAsideKept-1):] {
		if err := os.RemoveAll(path); err != nil {
			return moved, fmt.Errorf("remove older damaged data: %w", err)
		}
	}
	return moved, nil
}
