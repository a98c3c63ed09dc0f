package script

import (
	"fmt"
	"strconv"
	"strings"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// setMoves sets how a service's tasks are moved: max-unavailable=2, max-unavailable=10%, rebalance=no.
func setMoves(spec *swarmpb.ServiceSpec, key, value string) error {
	if key == "rebalance" {
		spec.NoRebalance = value == "no"
		return nil
	}
	number, share := strings.CutSuffix(value, "%")
	n, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return err
	}
	spec.MaxUnavailable = &swarmpb.DisruptionBudget{Most: &swarmpb.DisruptionBudget_Count{Count: n}}
	if share {
		spec.MaxUnavailable.Most = &swarmpb.DisruptionBudget_Percent{Percent: uint32(n)}
	}
	return nil
}

// doBalance says whether tasks are moved for balance, or asks for it once.
func (w *World) doBalance(args []string) error {
	cluster := swarmpb.Clone(w.View().Cluster())
	switch args[0] {
	case "on", "off":
		cluster.Spec.NoRebalance = args[0] == "off"
	case "now":
		cluster.RebalanceAt = w.Now().UnixNano()
	default:
		return fmt.Errorf("balance is on, off or now, not %q", args[0])
	}
	return w.Write(Put(&swarmpb.Row{Row: &swarmpb.Row_Cluster{Cluster: cluster}}))
}
