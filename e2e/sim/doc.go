// Package sim lives through the life of a whole cluster in one process and in virtual time: the real leader's loops,
// dispatcher and API on one store, and real agents whose runtime and network are in memory. It needs no privileges.
//
// What stands between the parts is what may go wrong: writes take a while, each another while; hosts are cut off,
// killed and brought back.
package sim
