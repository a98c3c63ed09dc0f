package containerd

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// The kernel takes no CPU quota below a millisecond, so that small shares need the longest period.
const (
	cpuPeriod     = 100_000   // us
	cpuLongPeriod = 1_000_000 // us, the kernel's maximum
	cpuLeastQuota = 1_000     // us
)

// resources gives limits for both cgroup versions: the OCI runtime translates them for the second. Memory and
// swap together are bounded by the memory limit, so nothing is swapped; where the kernel cannot bound swap it
// is left alone.
func resources(r *swarmpb.ResourceRequirements, pids int64, h host) *specs.LinuxResources {
	out := &specs.LinuxResources{
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}, // the runtime adds the standard ones
		Pids:    &specs.LinuxPids{Limit: &pids},
	}
	if given := r.GetPidsLimit(); given != 0 {
		out.Pids.Limit = &given
	}
	if *out.Pids.Limit < 0 {
		out.Pids = nil
	}
	if nano := r.GetLimits().GetNanoCpus(); nano > 0 {
		period := uint64(cpuPeriod)
		if nano < cpuLeastQuota*1_000_000_000/cpuPeriod {
			period = cpuLongPeriod
		}
		quota := max(quotaOf(nano, period), cpuLeastQuota)
		out.CPU = &specs.LinuxCPU{Period: &period, Quota: &quota}
	}
	limit, reserved := r.GetLimits().GetMemoryBytes(), r.GetReservations().GetMemoryBytes()
	if limit > 0 || reserved > 0 {
		out.Memory = &specs.LinuxMemory{}
	}
	if limit > 0 {
		out.Memory.Limit = &limit
		if h.swap {
			swap := limit
			out.Memory.Swap = &swap
		}
	}
	if reserved > 0 {
		out.Memory.Reservation = &reserved
	}
	return out
}

// quotaOf is nano billionths of a core in us a period, without overflow.
func quotaOf(nano int64, period uint64) int64 {
	const billion = 1_000_000_000
	return nano/billion*int64(period) + nano%billion*int64(period)/billion
}
