package control

import (
	"context"
	"errors"

	"github.com/swarmd/swarmd/manager/store"
)

// rewrite has a write of our own making decided by the newest view, and anew after each conflict with somebody else's, up to
// rewrites times. final, when set, tells the conflicts that are the user's to resolve. The last conflict is returned as it is.
func (s *Server) rewrite(ctx context.Context, decide func(view *store.View) error, final func(*store.ConflictError) bool) error {
	for try := 1; ; try++ {
		view, err := s.fresh(ctx)
		if err != nil {
			return err
		}
		err = decide(view)
		var conflict *store.ConflictError
		if !errors.As(err, &conflict) || try == rewrites || final != nil && final(conflict) {
			return err
		}
	}
}
