package dns

import (
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// lookAgain is how soon a file of nameservers is looked at again.
const lookAgain = time.Second

// HostUpstream reads nameservers from a file such as /etc/resolv.conf, anew within a second of its change. Without the
// file, or any in it, the nameserver is the host itself, as resolv.conf(5) has it. A file that cannot be read leaves what
// was there.
func HostUpstream(path string) func() []netip.AddrPort {
	u := &upstream{path: path, servers: onlyHost}
	return u.get
}

var onlyHost = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 53)}

type upstream struct {
	path string

	mu      sync.Mutex
	looked  time.Time
	seen    fs.FileInfo // nil: no file
	servers []netip.AddrPort
}

func (u *upstream) get() []netip.AddrPort {
	u.mu.Lock()
	defer u.mu.Unlock()
	if now := time.Now(); now.Sub(u.looked) >= lookAgain {
		u.looked = now
		u.look()
	}
	return u.servers
}

func (u *upstream) look() {
	info, err := os.Stat(u.path)
	if os.IsNotExist(err) {
		u.seen, u.servers = nil, onlyHost
		return
	}
	if err != nil || u.seen != nil && os.SameFile(info, u.seen) && info.ModTime().Equal(u.seen.ModTime()) && info.Size() == u.seen.Size() {
		return
	}
	data, err := os.ReadFile(u.path)
	if err != nil {
		return
	}
	u.seen, u.servers = info, nameservers(string(data))
}

// nameservers reads the nameserver lines of a resolv.conf.
func nameservers(text string) []netip.AddrPort {
	var out []netip.AddrPort
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" || len(out) == maxNameservers {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			out = append(out, netip.AddrPortFrom(a, 53))
		}
	}
	if len(out) == 0 {
		return onlyHost
	}
	return out
}
