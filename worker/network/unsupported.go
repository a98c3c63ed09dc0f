package network

import "github.com/swarmd/swarmd/worker/network/wireguard"

// ErrUnsupported: this host cannot do what the task needs, for example encrypt a network. Trying again does not help.
var ErrUnsupported = wireguard.ErrUnsupported
