package script

import (
	"math/big"
	"strconv"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// NodeCPUs says how many CPUs a node has.
func (w *World) NodeCPUs(id string, cpus string) error {
	n, err := parseCPUs(cpus)
	if err != nil {
		return err
	}
	status := swarmpb.Clone(w.View().NodeStatus(id))
	status.Description = &swarmpb.NodeDescription{Resources: &swarmpb.Resources{NanoCpus: n, MemoryBytes: 1 << 34}}
	return w.Write(Put(&swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: status}}))
}

// setNeeds sets what a service reserves, and how it stands to others.
func setNeeds(spec *swarmpb.ServiceSpec, key, value string) error {
	if key == "priority" {
		n, err := strconv.ParseInt(value, 10, 32)
		spec.Priority = int32(n)
		return err
	}
	n, err := parseCPUs(value)
	spec.Task.Resources = &swarmpb.ResourceRequirements{Reservations: &swarmpb.Resources{NanoCpus: n}}
	return err
}

func parseCPUs(s string) (int64, error) {
	r, ok := new(big.Rat).SetString(s)
	if !ok {
		return 0, strconv.ErrSyntax
	}
	return new(big.Int).Div(new(big.Int).Mul(r.Num(), big.NewInt(1e9)), r.Denom()).Int64(), nil
}
