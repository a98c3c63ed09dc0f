// Package allocator gives out what must be unique in the cluster: to every node one block of uplink addresses, which its
// containers get theirs from; to networks a number and a subnet; to tasks an address in each of their networks; to
// services a VIP there, and published ports.
//
// What is given is a row (pool, address) -> owner, which the store refuses to give twice. The lowest free one
// goes first (of VIPs the highest); a released one rests, so that connections to its last owner have died before the next
// has it, and its row goes when the rest is over. What a pool has free and what rests the store keeps as derived rows, so
// that nothing is kept here. It alone writes the rows Allocation, NetworkProgress, ServiceEndpoint and TaskAddresses, the
// alarms pool-full and route-overlap, and the end of a network that is to go.
package allocator

import "github.com/swarmd/swarmd/manager/reconcile"

// Reconcilers are the parts of the allocator, each to run under a driver of its own.
func Reconcilers() []reconcile.Reconciler {
	return []reconcile.Reconciler{&Uplink{}, Networks{}, Endpoints{}, Addresses{}, Overlaps{}}
}
