package node

import (
	"fmt"
	"testing"

	"github.com/swarmd/swarmd/proto/wire"
	"github.com/swarmd/swarmd/worker/runtime"
)

func TestImageError_TheRuntimesWords_AreNotSaidTwice(t *testing.T) {
	for _, c := range []struct {
		verb, runtime string
		cause         error
		code          wire.Code
		want          string
	}{
		{"", "remove image web:1: %w by containers a", runtime.ErrInUse, wire.CodeInUse, "remove image web:1: in use by containers a"},
		{"inspect image web:1", "image web:1 is not on this node: %w", runtime.ErrNotFound, wire.CodeNotFound,
			"inspect image web:1: image web:1 is not on this node: not found; `swarmctl image ls` lists what this host has"},
	} {
		if err := imageError(c.verb, fmt.Errorf(c.runtime, c.cause)); err.Error() != c.want || wire.CodeOf(err) != c.code {
			t.Errorf("%v (%v), want %s", err, wire.CodeOf(err), c.want)
		}
	}
}
