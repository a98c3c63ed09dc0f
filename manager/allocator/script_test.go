package allocator_test

import (
	"flag"
	"testing"

	"github.com/swarmd/swarmd/manager/allocator"
	"github.com/swarmd/swarmd/manager/orchestrator"
	"github.com/swarmd/swarmd/manager/reconcile/script"
)

var update = flag.Bool("update", false, "rewrite the scripts in testdata with what they print now")

func TestScripts_Played_PrintWhatTheySay(t *testing.T) {
	script.Run(t, "testdata", *update, func() (*script.World, error) {
		return script.New(append(orchestrator.Reconcilers(), allocator.Reconcilers()...)...)
	})
}
