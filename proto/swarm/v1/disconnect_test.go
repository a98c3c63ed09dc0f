package swarmpb

import (
	"math"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
)

func TestDisconnectWait_Spec_CountsGraceAndMargin(t *testing.T) {
	for name, test := range map[string]struct {
		after, grace *durationpb.Duration
		want         time.Duration
		ok           bool
	}{
		"never":         {nil, nil, 0, false},
		"zero":          {durationpb.New(0), nil, 0, false},
		"default grace": {durationpb.New(30 * time.Second), nil, 44 * time.Second, true},
		"no grace":      {durationpb.New(30 * time.Second), durationpb.New(0), 34 * time.Second, true},
		"long grace":    {durationpb.New(time.Second), durationpb.New(math.MaxInt64), math.MaxInt64, true},
	} {
		t.Run(name, func(t *testing.T) {
			spec := &TaskSpec{StopAfterDisconnect: test.after, Container: &ContainerSpec{StopGracePeriod: test.grace}}
			if got, ok := spec.DisconnectWait(); got != test.want || ok != test.ok {
				t.Errorf("got %s %t, want %s %t", got, ok, test.want, test.ok)
			}
		})
	}
}
