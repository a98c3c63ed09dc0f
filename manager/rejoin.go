package manager

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"

	"github.com/swarmd/swarmd/manager/replica"
	"github.com/swarmd/swarmd/proto/wire"
)

const (
	// rejoinTimeout is how long a damaged manager looks for a leader, rejoinPause between two rounds of asking, and
	// rejoinCall bounds one question.
	rejoinTimeout = 30 * time.Second
	rejoinPause   = time.Second
	rejoinCall    = 5 * time.Second
)

// IsDataError says whether the error of New is a *replica.DataError.
func IsDataError(err error) bool {
	var damaged *replica.DataError
	return errors.As(err, &damaged)
}

// HasData says whether there is a Raft log in a manager's directory, though it may be damaged. A manager that has taken
// part and has none has forgotten what it acknowledged: New would begin with nothing, and vote.
func HasData(dir string) bool {
	_, err := os.Stat(filepath.Join(raftDir(dir), "raft.db"))
	return !errors.Is(err, fs.ErrNotExist)
}

// Rejoin makes room for a new beginning where New has returned a *replica.DataError, or the data is gone: it asks the managers of
// cfg.Managers, of which the leader answers, to take this one's vote, and moves the damaged data aside. After nil New
// starts empty, and the leader has it catch up and gives it its vote back. After an error the data is as it was:
//
//   - wire.ErrFailedPrecondition: there are no other managers, or no majority of them answers, so that what is on this
//     disk may be all that there is; the error says what to do.
//   - wire.ErrUnavailable: no leader was found in time; it may be tried again.
func Rejoin(ctx context.Context, cfg Config) error {
	id, ok := cfg.Credentials.Identity()
	if !ok {
		return errors.New("rejoin: the node has no identity")
	}
	dir := raftDir(cfg.Dir)
	ask := func(ctx context.Context, address string) error {
		conn, err := cfg.dialManager(address)
		if err != nil {
			return err
		}
		defer conn.Close()
		return askRejoin(ctx, conn)
	}
	trouble := "this manager's data in " + dir + " is damaged"
	if !HasData(cfg.Dir) {
		trouble = "this manager's data in " + dir + " is missing"
	}
	if err := giveUpVote(ctx, cfg.Managers, cfg.Address, trouble, ask); err != nil {
		return err
	}
	moved, err := replica.SetAside(dir)
	if err != nil {
		return fmt.Errorf("rejoin: %w", err)
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	log.Warn("the manager begins again from the others' data; its own, if there was any, was moved aside", "node", id.NodeID, "moved", moved)
	return nil
}

func askRejoin(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(ctx, rejoinCall)
	defer cancel()
	return replica.AskRejoin(ctx, conn)
}

// giveUpVote asks each manager in turn until the leader has taken this one's vote. trouble begins its errors.
func giveUpVote(ctx context.Context, managers []string, self, trouble string, ask func(ctx context.Context, address string) error) error {
	ctx, cancel := context.WithTimeout(ctx, rejoinTimeout)
	defer cancel()
	for {
		var errs []error
		asked := 0
		for _, address := range managers {
			if address == self {
				continue
			}
			asked++
			err := ask(ctx, address)
			switch {
			case err == nil:
				return nil
			case errors.Is(err, wire.ErrFailedPrecondition):
				return wire.Errorf(wire.CodeFailedPrecondition, "%s, and it cannot begin again from the others' now: %w", trouble, err)
			}
			errs = append(errs, fmt.Errorf("manager %s: %w", address, err))
		}
		if asked == 0 {
			return wire.Errorf(wire.CodeFailedPrecondition, "%s, and no other manager is known to begin again from; "+
				"restore the directory from a backup, or run `swarmctl leave --force` here to give the data up for good", trouble)
		}
		timer := time.NewTimer(rejoinPause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return wire.Errorf(wire.CodeUnavailable, "%s, and no leader of the others was found: %w; "+
				"see that most of the other managers run and are reached from here", trouble, errors.Join(errs...))
		}
	}
}
