package manager

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/swarmd/swarmd/proto/wire"
)

func TestGiveUpVote_OthersAnswer_TheLeaderIsFoundOrTheReasonIsGiven(t *testing.T) {
	const self = "10.0.0.1:2377"
	notLeader := wire.Errorf(wire.CodeNotLeader, "it does not lead")
	for _, tc := range []struct {
		name     string
		managers []string
		answer   func(address string, at time.Duration) error
		code     wire.Code // 0: it may begin again
		text     string
	}{
		{"the second leads", []string{self, "a", "b"}, func(address string, _ time.Duration) error {
			if address == "b" {
				return nil
			}
			return notLeader
		}, 0, ""},
		{"a leader comes later", []string{"a", "b"}, func(address string, at time.Duration) error {
			if address == "a" && at > 10*time.Second {
				return nil
			}
			return notLeader
		}, 0, ""},
		{"refused", []string{"a"}, func(string, time.Duration) error {
			return wire.Errorf(wire.CodeFailedPrecondition, "1 of the 2 other managers answer; start them first")
		}, wire.CodeFailedPrecondition, "start them first"},
		{"alone", []string{self}, nil, wire.CodeFailedPrecondition, "swarmctl leave --force"},
		{"nobody there", []string{"a", "b"}, func(string, time.Duration) error { return wire.Errorf(wire.CodeUnavailable, "connection refused") },
			wire.CodeUnavailable, "manager b: connection refused"},
	} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			var asked []string
			err := giveUpVote(t.Context(), tc.managers, self, "/data", func(_ context.Context, address string) error {
				asked = append(asked, address)
				return tc.answer(address, time.Since(began))
			})
			if slices.Contains(asked, self) {
				t.Errorf("%s: it asked itself", tc.name)
			}
			switch {
			case tc.code == 0 && err != nil:
				t.Errorf("%s: %v", tc.name, err)
			case tc.code != 0 && (wire.CodeOf(err) != tc.code || !strings.Contains(err.Error(), tc.text) || !strings.Contains(err.Error(), "/data")):
				t.Errorf("%s: %v (%v)", tc.name, err, wire.CodeOf(err))
			}
		})
	}
}
