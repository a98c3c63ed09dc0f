// Package reconcile is the loop that every controller of the manager runs on: watch -> ids -> Reconcile ->
// propose -> retry or wake.
//
// A Reconciler decides; the Driver does everything else. It turns changes of the store into ids, each of them
// once; hands the newest view and the time to the Reconciler; proposes the plan that comes back, with many
// proposals under way at a time but never two of one id; and looks again after the plan's own time, after a
// conflict, after an error with a growing pause, or when something has changed. It promises that a Reconciler
// never judges one id by a view without that id's own committed writes, that its methods are never called at
// the same time, and that a panic costs the one object that caused it, not the loop.
//
// Of its own it writes one thing: the alarm quarantined, and its end.
package reconcile

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/store"
)

// MaxWrites is the greatest number of writes in one plan.
const MaxWrites = store.MaxWrites

// MaxRest is the greatest number of parts that a plan may have beyond the first: what one look at a large object is
// good for.
const MaxRest = 19

// QuarantineAlarm is the kind of the alarm that says that an object is left alone after panics.
const QuarantineAlarm = "quarantined"

// ID is the unit of work: an object, one slot of it, or what it has on one node.
type ID struct {
	// Object is the ID of a service, a node, a task...; what a Reconciler has one of is named by a constant.
	Object string
	// Slot is 0 when the whole object is meant.
	Slot uint64
	// Node is empty when the object is meant wherever it is.
	Node string
}

// String is the id for people: object, object/slot, object@node or object@node/slot.
func (id ID) String() string {
	if id.Slot == 0 {
		return id.place()
	}
	return id.place() + "/" + strconv.FormatUint(id.Slot, 10)
}

func (id ID) place() string {
	if id.Node == "" {
		return id.Object
	}
	return id.Object + "@" + id.Node
}

// compare orders ids.
func (id ID) compare(other ID) int {
	return cmp.Or(strings.Compare(id.Object, other.Object), cmp.Compare(id.Slot, other.Slot), strings.Compare(id.Node, other.Node))
}

// Plan is what a Reconciler wants written, whole or not at all, and when it wants to be asked again.
type Plan struct {
	// At most MaxWrites.
	Writes []*swarmpb.Write
	// The rows that the decision rests on.
	Guards []*swarmpb.Guard
	// Look again at this time though nothing has changed; zero = never.
	At time.Time
	// Look again as soon as the writes are in: there was more to do than fits.
	More bool
	// Also are other ids to look at, once the writes are in.
	Also []Look
	// Rest goes on with the same decision, each part whole or not at all, one after the other as soon as the one
	// before is in. After a refusal the others are dropped and the decision is made anew, so every part carries the
	// guards that it rests on. At most MaxRest parts, without a rest, time, more or also of their own.
	Rest []Plan
}

// Look is an id that is to be looked at: as soon as possible, or at a time, if it is not looked at before.
type Look struct {
	ID ID
	At time.Time
}

// check refuses a plan that is larger than it may be.
func (p Plan) check() error {
	if len(p.Rest) > MaxRest {
		return fmt.Errorf("plan has %d further parts, at most %d are allowed", len(p.Rest), MaxRest)
	}
	for i := range len(p.Rest) + 1 {
		part := p
		if i > 0 {
			part = p.Rest[i-1]
		}
		if len(part.Writes) > MaxWrites {
			return fmt.Errorf("plan has %d writes, at most %d are allowed", len(part.Writes), MaxWrites)
		}
	}
	return nil
}

// Next is the plan without its first part; false when that was all.
func (p Plan) Next() (Plan, bool) {
	if len(p.Rest) == 0 {
		return Plan{}, false
	}
	next := p.Rest[0]
	next.At, next.More, next.Also, next.Rest = p.At, p.More, p.Also, p.Rest[1:]
	return next, true
}

// Reconciler decides what is to be written. It judges by the view and the time that it is given alone, keeps
// nothing between calls, does no I/O, and makes the same plan from the same view, id and time.
type Reconciler interface {
	// Name stands in logs and alarms, for example replicated.
	Name() string
	// Affects names the ids that a change gives reason to look at. view contains the change.
	Affects(view *store.View, change store.Change) []ID
	// All names every id that may have something to do; asked at the start and when changes were missed.
	All(view *store.View) []ID
	// Reconcile plans for one id.
	Reconcile(view *store.View, id ID, now time.Time) (Plan, error)
}

// Settler is a Reconciler that is told what became of each part of a plan: placement, whose overlay of plans
// in flight ends with them. index is the one at which the plan was applied; err is nil only then. Once Run has
// ended no plan of it is settled any more.
type Settler interface {
	Settled(id ID, plan Plan, index uint64, err error)
}

// Paced is a Reconciler some of whose looks cost so much that they are not to follow every change.
type Paced interface {
	// Pace is how long after the beginning of a look at id the next one begins at the earliest, whatever changes meanwhile; 0 =
	// at once. A look that had more to do than fits, or whose writes met a conflict, is gone on with at once.
	Pace(view *store.View, id ID) time.Duration
}

// Limits bounds a Driver; a field that is zero has its default.
type Limits struct {
	// InFlight is how many proposals may be under way at a time; 64.
	InFlight int
	// Watch is how many changes may wait before the driver lists everything again instead; 65,536.
	Watch int
	// Conflicts is how many conflicts in a row are retried at once, before they count as errors; 5.
	Conflicts int
	// Panics is how many panics in a row put an id into quarantine; 3.
	Panics int
	// BackoffMin and BackoffMax bound the pause after an error, which doubles: 100 ms and 30 s.
	BackoffMin, BackoffMax time.Duration
}

func (l Limits) withDefaults() Limits {
	orDefault(&l.InFlight, 64)
	orDefault(&l.Watch, 65536)
	orDefault(&l.Conflicts, 5)
	orDefault(&l.Panics, 3)
	orDefault(&l.BackoffMin, 100*time.Millisecond)
	orDefault(&l.BackoffMax, 30*time.Second)
	return l
}

func orDefault[N int | time.Duration](n *N, value N) {
	if *n == 0 {
		*n = value
	}
}

// Config is what a Driver is made from.
type Config struct {
	Store      *store.Store
	Leader     store.Leader
	Reconciler Reconciler
	// Clock is the manager's; nil = time.Now.
	Clock func() time.Time
	// Logger; nil = slog.Default.
	Logger *slog.Logger
	Limits Limits
}

// New checks the configuration and makes a driver that does nothing until Run.
func New(cfg Config) (*Driver, error) {
	switch {
	case cfg.Store == nil:
		return nil, errors.New("new reconcile driver: no store")
	case cfg.Leader == nil:
		return nil, errors.New("new reconcile driver: no leader to propose to")
	case cfg.Reconciler == nil:
		return nil, errors.New("new reconcile driver: no reconciler")
	case cfg.Limits.InFlight < 0, cfg.Limits.Watch < 0, cfg.Limits.Conflicts < 0, cfg.Limits.Panics < 0,
		cfg.Limits.BackoffMin < 0, cfg.Limits.BackoffMax < 0:
		return nil, fmt.Errorf("new reconcile driver %s: a limit is negative: %+v", cfg.Reconciler.Name(), cfg.Limits)
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	cfg.Limits = cfg.Limits.withDefaults()
	return &Driver{
		cfg:      cfg,
		limits:   cfg.Limits,
		log:      cfg.Logger.With("reconciler", cfg.Reconciler.Name()),
		items:    map[ID]*item{},
		paced:    paces{},
		troubled: map[string]map[ID]struct{}{},
		feed:     make(chan news),
		outcomes: make(chan outcome, cfg.Limits.InFlight),
	}, nil
}

// alarmObject names an id in alarms: replicated/<object>/<slot>, global/<object>@<node>/0.
func alarmObject(reconciler string, id ID) string {
	return reconciler + "/" + id.place() + "/" + strconv.FormatUint(id.Slot, 10)
}

// alarmID is the inverse of alarmObject; false for other reconcilers' alarms.
func alarmID(reconciler, object string) (ID, bool) {
	rest, ok := strings.CutPrefix(object, reconciler+"/")
	i := strings.LastIndexByte(rest, '/')
	if !ok || i < 0 {
		return ID{}, false
	}
	slot, err := strconv.ParseUint(rest[i+1:], 10, 64)
	of, node, _ := strings.Cut(rest[:i], "@")
	return ID{Object: of, Slot: slot, Node: node}, err == nil
}
