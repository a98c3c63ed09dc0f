package gossip

import (
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	// alonePause is the pause between tries to find anyone at all, missingPause that to find a seed that is not
	// among the living: after a partition longer than the library remembers the dead, both sides know only themselves.
	alonePause   = time.Second
	missingPause = 15 * time.Second
	// lookup bounds the resolving of a seed's name.
	lookup = 2 * time.Second
	// maxSeeds that are tried.
	maxSeeds = 64
)

// gather looks for the seeds that are missing, until ctx ends.
func (g *Gossip) gather(ctx context.Context, list *memberlist.Memberlist) {
	for {
		g.mu.Lock()
		seeds := g.seeds[:min(len(g.seeds), maxSeeds)]
		g.mu.Unlock()
		missing := g.missing(ctx, seeds)
		rand.Shuffle(len(missing), func(i, j int) { missing[i], missing[j] = missing[j], missing[i] })
		for _, addr := range missing {
			if _, err := list.Join([]string{addr.String()}); err != nil {
				g.log.Debug("seed of gossip does not answer", "address", addr, "error", err)
			}
			if ctx.Err() != nil {
				return
			}
			if len(g.roster.alive()) > 0 {
				break // the others are told of by whoever answered, or come another time
			}
		}
		pause := missingPause
		if len(g.roster.alive()) == 0 && len(seeds) > 0 {
			pause = alonePause
		}
		timer := time.NewTimer(pause - rand.N(pause/4))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-g.meet:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// missing are the addresses of seeds that are not this node's own nor a living member's.
func (g *Gossip) missing(ctx context.Context, seeds []string) []netip.AddrPort {
	known := map[netip.AddrPort]bool{g.advertise: true}
	for _, m := range g.roster.alive() {
		known[m.Address] = true
	}
	var out []netip.AddrPort
	for _, seed := range seeds {
		for _, addr := range g.resolve(ctx, seed) {
			if !known[addr] && !slices.Contains(out, addr) {
				out = append(out, addr)
			}
		}
	}
	return out
}

func (g *Gossip) resolve(ctx context.Context, seed string) []netip.AddrPort {
	if addr, err := parseAddress(seed); err == nil {
		return []netip.AddrPort{addr}
	}
	host, port := seed, uint64(DefaultPort)
	if h, p, err := net.SplitHostPort(seed); err == nil {
		host = h
		if port, err = strconv.ParseUint(p, 10, 16); err != nil {
			return nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, lookup)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		g.log.Debug("seed of gossip has no address", "seed", seed, "error", err)
	}
	var out []netip.AddrPort
	for _, addr := range addrs {
		out = append(out, netip.AddrPortFrom(addr.Unmap(), uint16(port)))
	}
	return out
}
