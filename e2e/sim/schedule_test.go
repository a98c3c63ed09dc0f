package sim

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const (
	// storm is how long faults begin and clients work; both have ended by calm.
	storm = 40 * time.Second
	calm  = 60 * time.Second
	// clients of a cluster, each with operations of its own.
	clientCount = 3
	registers   = 2
	singles     = 4 // services that may run once
	operations  = 24
	faultCount  = 12
)

// schedule is all that a seed decides: what is done to the cluster and when. The leader is whoever leads then.
type schedule struct {
	seed              uint64
	managers, workers int
	modes             bool // every second seed: services of every mode, and what is done to nodes
	faults            []fault
	clients           [clientCount][]operation
}

type faultKind string

const (
	kill      faultKind = "kill"       // swarmd -9; containers go on
	stop      faultKind = "stop"       // SIGTERM
	powerOff  faultKind = "power-off"  // containers are lost too, and nobody is told
	pause     faultKind = "pause"      // its connections stall
	partition faultKind = "partition"  // between two sets of machines, both ways
	deaf      faultKind = "one-way"    // from one set to the other alone
	reset     faultKind = "reset"      // all its connections end
	blackout  faultKind = "blackout"   // power-off of all managers at once
	slowDisk  faultKind = "slow-disk"  // each write of the log takes up to amount
	fullDisk  faultKind = "full-disk"  // each write of the log fails
	hungDisk  faultKind = "hung-disk"  // no write of the log returns
	slowNet   faultKind = "slow-net"   // what is sent takes up to amount
	slowPulls faultKind = "slow-pulls" // an image takes up to amount
	failing   faultKind = "failing"    // no container starts
	crash     faultKind = "crash"      // its containers end by themselves
	drained   faultKind = "drain"      // an operator empties it
	emptied   faultKind = "emptied"    // and does not give it back
	paused    faultKind = "paused"     // it takes no new tasks
	relabel   faultKind = "relabel"    // it is in the other zone from then on
	leave     faultKind = "leave"      // its host is reinstalled, and joins as a new node
	hold      faultKind = "hold"       // nothing in the cluster moves for balance by itself
	even      faultKind = "even"       // a user asks for balance
)

// fault is done at a time and undone at another.
type fault struct {
	at, until time.Duration
	kind      faultKind
	machine   string // or leader
	sides     [2][]string
	amount    time.Duration
}

func (f fault) String() string {
	what := f.machine
	if len(f.sides[0]) > 0 {
		what = strings.Join(f.sides[0], " ") + " | " + strings.Join(f.sides[1], " ")
	}
	if f.amount > 0 {
		what = strings.TrimSpace(what + " " + f.amount.String())
	}
	return fmt.Sprintf("%7.3fs to %7.3fs %-10s %s", f.at.Seconds(), f.until.Seconds(), f.kind, what)
}

type operationKind string

const (
	opWrite  operationKind = "write"  // a register, whatever it is
	opRead   operationKind = "read"   // a register
	opAppend operationKind = "append" // to the journal, as it was read
	opCreate operationKind = "create" // of a service that this client alone works with
	opChange operationKind = "change"
	opRemove operationKind = "remove"
	opLook   operationKind = "look"
)

// operation of a client, through a manager; when that fails, through the next.
type operation struct {
	at       time.Duration
	kind     operationKind
	service  string
	via      int
	value    string
	replicas uint64
	image    string
	port     uint32
	mesh     bool // publishes a port on every node
	attached bool // to the network of all
	first    bool // start-first
	strategy swarmpb.UpdateStrategy
	shape    *shape // nil: a replicated service as in every seed
}

func (o operation) String() string {
	text := fmt.Sprintf("%7.3fs %-6s %s via m%d", o.at.Seconds(), o.kind, o.service, o.via+1)
	if o.replicas > 0 {
		text += fmt.Sprintf(" value=%s replicas=%d image=%s port=%d mesh=%t attached=%t start-first=%t %s", o.value, o.replicas, o.image, o.port, o.mesh,
			o.attached, o.first, o.strategy.Name())
	}
	if o.shape != nil {
		text += " " + o.shape.String()
	}
	return text
}

func (s *schedule) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: %d managers, %d workers, modes %t\n", s.seed, s.managers, s.workers, s.modes)
	for _, f := range s.faults {
		fmt.Fprintf(&b, "  %s\n", f)
	}
	for i, list := range s.clients {
		for _, o := range list {
			fmt.Fprintf(&b, "  client %d: %s\n", i, o)
		}
	}
	return b.String()
}

// newSchedule draws what a seed stands for.
func newSchedule(seed uint64) *schedule {
	r := rand.New(rand.NewPCG(seed, 0x5eed))
	s := &schedule{seed: seed, managers: 3 + 2*r.IntN(2), workers: 5 + r.IntN(16)}
	if s.managers == 5 {
		s.workers = 5 + r.IntN(8)
	}
	if s.modes = seed%2 == 0; s.modes {
		s.workers = 4 + s.workers%5
	}
	for range faultCount {
		s.faults = append(s.faults, s.draw(r))
	}
	if s.modes {
		s.faults = append(s.faults, s.upkeep(r)...)
	}
	slices.SortStableFunc(s.faults, func(a, b fault) int { return cmp.Compare(a.at, b.at) })
	for i := range s.clients {
		if s.modes && i > 0 {
			s.clients[i] = s.modeWork(r, i)
			continue
		}
		s.clients[i] = s.work(r, i)
	}
	return s
}

func between(r *rand.Rand, low, high time.Duration) time.Duration {
	return (low + time.Duration(r.Int64N(int64(high-low)))).Round(time.Millisecond)
}

// draw is one fault.
func (s *schedule) draw(r *rand.Rand) fault {
	f := fault{at: between(r, time.Second, storm)}
	lasts := between(r, 500*time.Millisecond, 15*time.Second)
	aManager := func() string {
		if r.IntN(2) == 0 {
			return "leader"
		}
		return fmt.Sprintf("m%d", 1+r.IntN(s.managers))
	}
	aWorker := func() string { return fmt.Sprintf("w%d", 1+r.IntN(s.workers)) }
	anyone := func() string {
		if r.IntN(2) == 0 {
			return aManager()
		}
		return aWorker()
	}
	switch r.IntN(19) {
	case 0, 1:
		f.kind, f.machine = kill, aManager()
	case 2:
		f.kind, f.machine = stop, aManager()
	case 3:
		f.kind, f.machine = kill, aWorker()
		lasts = min(lasts, 8*time.Second) // nobody stops what runs there meanwhile
	case 4:
		f.kind, f.machine = powerOff, anyone()
	case 5, 6:
		f.kind, f.machine = pause, anyone()
	case 7, 8:
		f.kind, f.sides = partition, s.split(r)
	case 9:
		f.kind, f.sides = deaf, s.split(r)
	case 10:
		f.kind, f.machine, lasts = reset, anyone(), time.Millisecond
	case 11:
		f.kind, f.machine, f.amount = slowDisk, aManager(), between(r, 5*time.Millisecond, 400*time.Millisecond)
	case 12:
		f.kind, f.machine = hungDisk, aManager()
	case 13:
		f.kind, f.amount = slowNet, between(r, 5*time.Millisecond, 150*time.Millisecond)
	case 14:
		f.kind, f.machine, f.amount = slowPulls, aWorker(), between(r, time.Second, 20*time.Second)
	case 15:
		f.kind, f.machine = fullDisk, aManager()
	case 16:
		if f.kind, f.machine = failing, aWorker(); r.IntN(3) == 0 {
			f.kind, f.machine, lasts = blackout, "", between(r, time.Second, 6*time.Second)
		}
	case 17:
		f.kind, f.machine, lasts = crash, aWorker(), time.Millisecond
	default:
		f.kind, f.machine = drained, anyone()
	}
	f.until = min(f.at+lasts, calm)
	return f
}

// split puts every machine on one of two sides, or on none.
func (s *schedule) split(r *rand.Rand) (sides [2][]string) {
	if r.IntN(3) == 0 { // workers that lose all managers
		for i := range s.managers {
			sides[1] = append(sides[1], fmt.Sprintf("m%d", i+1))
		}
		for i := range s.workers {
			if i == 0 || r.IntN(4) == 0 {
				sides[0] = append(sides[0], fmt.Sprintf("w%d", i+1))
			}
		}
		return sides
	}
	for len(sides[0]) == 0 || len(sides[1]) == 0 {
		sides = [2][]string{}
		odds := 2 + r.IntN(4) // the smaller, the more go to the first side
		put := func(name string) {
			if side := r.IntN(odds); side == 0 {
				sides[0] = append(sides[0], name)
			} else if r.IntN(8) > 0 {
				sides[1] = append(sides[1], name)
			}
		}
		for i := range s.managers {
			put(fmt.Sprintf("m%d", i+1))
		}
		for i := range s.workers {
			put(fmt.Sprintf("w%d", i+1))
		}
	}
	return sides
}

// work is what a client does.
func (s *schedule) work(r *rand.Rand, client int) []operation {
	var out []operation
	exists := map[string]bool{}
	ports := map[string]uint32{}
	mesh := map[string]bool{}
	strategies := rand.New(rand.NewPCG(s.seed, 0x5e7+uint64(client))) // of its own: what else a seed stands for stays
	for range operations {
		o := operation{at: between(r, 0, storm), via: r.IntN(s.managers)}
		out = append(out, o)
	}
	slices.SortFunc(out, func(a, b operation) int { return cmp.Compare(a.at, b.at) })
	for i := range out {
		o := &out[i]
		switch r.IntN(7) {
		case 0, 1:
			// All clients at the same moment, as far as they can.
			o.at, o.kind, o.service, o.value = o.at.Round(4*time.Second), opAppend, journal, fmt.Sprintf("c%d.%d", client, i)
		case 2, 3:
			o.service = fmt.Sprintf("register%d", r.IntN(registers))
			if o.kind = opRead; r.IntN(2) == 0 {
				o.kind, o.replicas, o.first = opWrite, 1, r.IntN(2) == 0
			}
		default:
			o.service = fmt.Sprintf("service%d%c", client, 'a'+r.IntN(2))
			switch {
			case !exists[o.service]:
				o.kind = opCreate
				if ports[o.service] = 0; r.IntN(3) == 0 {
					ports[o.service] = 8000 + uint32(10*client+i%2)
				}
				exists[o.service], mesh[o.service] = true, r.IntN(2) == 0
			case r.IntN(4) == 0:
				o.kind = opRemove
				exists[o.service] = false
			case r.IntN(3) == 0:
				o.kind = opLook
			default:
				o.kind = opChange
			}
			if o.kind == opCreate || o.kind == opChange {
				o.replicas, o.first, o.port = 1+r.Uint64N(4), r.IntN(3) == 0, ports[o.service]
				// A service may come into the network and leave it.
				o.mesh, o.attached = mesh[o.service], r.IntN(2) == 0
				o.strategy = swarmpb.UpdateStrategy(strategies.IntN(len(swarmpb.UpdateStrategy_name)))
			}
		}
		if o.replicas > 0 {
			o.value, o.image = fmt.Sprintf("c%d.%d", client, i), fmt.Sprintf("nginx:%d", 1+r.IntN(3))
		}
	}
	return out
}
