package manager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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

// Rejoin makes room for a new beginning where New has returned a *replica.DataError: it asks the managers of
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
	transport := cfg.transport()
	ask := func(ctx context.Context, address string) error {
		conn, err := transport.DialManager(address)
		if err != nil {
			return err
		}
		defer conn.Close()
		return askRejoin(ctx, conn)
	}
	if err := giveUpVote(ctx, cfg.Managers, cfg.Address, dir, ask); err != nil {
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
	log.Warn("the manager's damaged data was moved aside; it begins again from the others' data", "node", id.NodeID, "data", moved)
	return nil
}

func askRejoin(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(ctx, rejoinCall)
	defer cancel()
	return replica.AskRejoin(ctx, conn)
}

// giveUpVote asks each manager in turn until the leader has taken this one's vote.
func giveUpVote(ctx context.Context, managers []string, self, dir string, ask func(ctx context.Context, address string) error) error {
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
				return wire.Errorf(wire.CodeFailedPrecondition, "this manager's data in %s is damaged, and it cannot begin again from the others' now: %w", dir, err)
			}
			errs = append(errs, fmt.Errorf("manager %s: %w", address, err))
		}
		if asked == 0 {
			return wire.Errorf(wire.CodeFailedPrecondition, "this manager's data in %s is damaged, and no other manager is known to begin again from; "+
				"restore the directory from a backup, or run `swarmctl leave --force` here to give the data up for good", dir)
		}
		timer := time.NewTimer(rejoinPause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return wire.Errorf(wire.CodeUnavailable, "this manager's data in %s is damaged, and no leader of the others was found: %w; "+
				"see that most of the other managers run and are reached from here", dir, errors.Join(errs...))
		}
	}
}
