package worker

import (
	"encoding/json"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// moment is a point in time by two clocks: neither is moved by who sets the time of day, and the second one goes on
// while the host is suspended.
type moment struct {
	at   time.Time
	boot time.Duration
}

func thisMoment() moment { return moment{time.Now(), bootClock()} }

// age is how long ago it was, by the clock that says more.
func (m moment) age() time.Duration { return max(time.Since(m.at), bootClock()-m.boot) }

// bootClock is the time since the host started; 0 where it cannot be told.
func bootClock() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// bootID names this run of the host's kernel; empty where it cannot be told.
func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}

// contact is the newest moment at which this node certainly was not cut off from the managers: when it sent the newest
// beat that a manager with a leader has answered.
type contact struct {
	mu     sync.Mutex
	newest moment
	known  bool
	// saved is what was kept last, under the host's boot ID.
	saved moment
	host  string
}

func newContact() *contact { return &contact{host: bootID()} }

// touch notes a moment; it reports whether it is the newest.
func (c *contact) touch(m moment) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known && !m.at.After(c.newest.at) {
		return false
	}
	c.newest, c.known = m, true
	return true
}

// age is how long ago the last contact was; false when none is known.
func (c *contact) age() (time.Duration, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.known {
		return 0, false
	}
	return c.newest.age(), true
}

// contactRecord is a contact on the disk. It is never later than the last contact, at most contactEvery earlier.
type contactRecord struct {
	Host string        `json:"host"` // boot ID
	Boot time.Duration `json:"boot"`
	Wall int64         `json:"wall"` // Unix time in nanoseconds
}

// record is what is to be kept now; nil when that is on the disk already, or within every of it.
func (c *contact) record(every time.Duration) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.known || !c.saved.at.IsZero() && c.newest.at.Sub(c.saved.at) < max(every, 1) {
		return nil
	}
	c.saved = c.newest
	out, err := json.Marshal(contactRecord{c.host, c.newest.boot, c.newest.at.UnixNano()})
	if err != nil {
		return nil
	}
	return out
}

// restore takes up the contact of a former process. Of a host that has been started anew none is known: nothing runs on it
// that could go on. Where the two clocks differ, the longer time counts: that a wall clock was put forward may
// end a task early, that it was put back lets none go on too long.
func (c *contact) restore(value []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.newest, c.known, c.saved = moment{}, false, moment{}
	var r contactRecord
	if json.Unmarshal(value, &r) != nil || c.host == "" || r.Host != c.host {
		return
	}
	now := thisMoment()
	age := max(now.boot-r.Boot, now.at.Sub(time.Unix(0, r.Wall)), 0)
	c.newest, c.known = moment{now.at.Add(-age), now.boot - age}, true
}
