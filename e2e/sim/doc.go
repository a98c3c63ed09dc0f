// Package sim lives through the life of a whole cluster in one process and in virtual time. It needs no privileges.
//
// A world (world_test.go) has several managers with their Raft logs on disk, and workers: all of it is what runs on
// real hosts, but for the network, the containers and the hosts' own networks, which are in memory. A seed decides on a
// schedule of faults and of what users do; checks_test.go says what must hold after every commit, and once the faults
// are over the cluster must become what its services say. What users saw must be linearizable.
//
//	go test ./e2e/sim                 40 seeds
//	make sim SEEDS=1000 SEED=7000     any number, from any
//	SIM_LOG=1 make sim SEED=7042      one, with what the daemons log
//
// Every second seed is of all modes (modes_test.go): two of its clients work with global services, jobs, schedules, priorities and
// disruption budgets in zones, and operators drain, pause, relabel, remove and add nodes, and switch balance off and ask for it
// (operators_test.go). runs_test.go says what must hold of jobs and schedules, counted at the containers that were really started,
// fleet_test.go of where tasks are, and moves_test.go of those that are told to be elsewhere. Once such a cluster is as it should
// be, nothing may begin for a minute but what a schedule asks for, and in the end nothing may move.
//
// The same seed plays the same faults. What the goroutines do between them is up to Go's scheduler, so that a failure
// that is rare may take several runs to come again.
//
// A cluster (cluster_test.go) is the light one: one manager without Raft, for stories about a single leader's loops.
package sim
