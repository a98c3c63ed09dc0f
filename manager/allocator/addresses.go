package allocator

import (
	"fmt"
	"slices"
	"strings"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/store"
)

// maxRefreshed is for how many tasks that wait the message is kept up to date; the others keep their first one.
const maxRefreshed = 100

// Addresses is the reconciler of the tasks' addresses. A network is a unit of work, which gives addresses to the tasks that
// wait for one of it; so is a task that has ended or is gone, which lets go of its own.
type Addresses struct{}

var _ reconcile.Reconciler = Addresses{}

// Name stands in logs.
func (Addresses) Name() string { return "address-allocator" }

// Affects: networks, tasks that come and end, addresses that are released.
func (Addresses) Affects(view *store.View, c store.Change) []reconcile.ID {
	switch c.Table {
	case swarmpb.Table_TABLE_NETWORK, swarmpb.Table_TABLE_NETWORK_PROGRESS:
		return []reconcile.ID{{Object: c.Key.ID}}
	case swarmpb.Table_TABLE_TASK:
		if task, _ := c.New.(*swarmpb.Task); c.Old == nil {
			return networksOf(view, task)
		}
	case swarmpb.Table_TABLE_TASK_STATUS:
		old, _ := c.Old.(*swarmpb.TaskStatus)
		now, _ := c.New.(*swarmpb.TaskStatus)
		if now.GetState().Ended() && !old.GetState().Ended() && len(view.Addresses(c.Key.ID).GetNetworks()) > 0 {
			return []reconcile.ID{{Object: c.Key.ID}}
		}
	case swarmpb.Table_TABLE_TASK_ADDRESSES:
		if old, _ := c.Old.(*swarmpb.TaskAddresses); c.New == nil {
			ids := []reconcile.ID{{Object: c.Key.ID}}
			if old.GetMessage() != "" {
				ids = append(ids, fullNetworks(view)...) // one fewer waits
			}
			return ids
		}
		// Where it has one now, another network may be why it still waits, and is to say so.
		if now, _ := c.New.(*swarmpb.TaskAddresses); now.GetMessage() == "" && view.Observed(c.Key.ID) == swarmpb.TaskState_TASK_STATE_NEW {
			return networksOf(view, view.Task(c.Key.ID))
		}
	case swarmpb.Table_TABLE_SERVICE_ENDPOINT:
		now, _ := c.New.(*swarmpb.ServiceEndpoint)
		old, _ := c.Old.(*swarmpb.ServiceEndpoint)
		if old.GetMessage() != now.GetMessage() {
			return append(networksOfService(view, c.Key.ID), fullNetworks(view)...)
		}
	case swarmpb.Table_TABLE_ALLOCATION:
		if isNetworkPool(c.Key.ID) && released(c) {
			return []reconcile.ID{{Object: c.Key.ID[len(networkPrefix):]}}
		}
	}
	return nil
}

func networksOf(view *store.View, task *swarmpb.Task) (ids []reconcile.ID) {
	for _, n := range view.Template(task.GetServiceId(), task.GetTemplateVersion()).GetSpec().GetNetworks() {
		ids = append(ids, reconcile.ID{Object: n.GetNetwork()})
	}
	return ids
}

func networksOfService(view *store.View, serviceID string) (ids []reconcile.ID) {
	for _, n := range view.Service(serviceID).GetSpec().GetTask().GetNetworks() {
		ids = append(ids, reconcile.ID{Object: n.GetNetwork()})
	}
	return ids
}

// fullNetworks are those that have an alarm.
func fullNetworks(view *store.View) (ids []reconcile.ID) {
	for a := range view.Alarms() {
		if id, ok := strings.CutPrefix(a.GetObject(), networkPrefix); ok && a.GetKind() == PoolFullAlarm {
			ids = append(ids, reconcile.ID{Object: id})
		}
	}
	return ids
}

// All are the networks, and whoever holds an address that it should not.
func (Addresses) All(view *store.View) (ids []reconcile.ID) {
	for n := range view.Networks() {
		ids = append(ids, reconcile.ID{Object: n.GetId()})
		for row := range view.Allocations(NetworkPool(n.GetId())) {
			if owner := row.GetOwner(); owner != "" && owner != Gateway && !entitled(view, owner) {
				ids = append(ids, reconcile.ID{Object: owner})
			}
		}
	}
	return ids
}

// entitled tells whether an owner may hold addresses of networks: a service, or a task that has not ended.
func entitled(view *store.View, owner string) bool {
	rows := view.TaskRows(owner)
	return (rows.Task != nil && !rows.Observed.Ended()) || view.Service(owner) != nil
}

// Reconcile plans for a network, or for an owner of addresses.
func (Addresses) Reconcile(view *store.View, id reconcile.ID, now time.Time) (reconcile.Plan, error) {
	b := &batch{view: view, now: now}
	if network := view.Network(id.Object); network != nil {
		if network.GetRemoving() {
			b.end(NetworkPool(network.GetId()))
		} else {
			(&addressPass{batch: b, network: network}).run()
		}
	} else if !entitled(view, id.Object) {
		b.releaseAll(id.Object, isNetworkPool)
	}
	return b.done(), nil
}

// releaseAll lets go of what an owner holds in the pools.
func (b *batch) releaseAll(owner string, of func(pool string) bool) {
	for row := range b.view.AllocationsOf(owner) {
		if !of(row.GetPool()) {
			continue
		}
		w, g := free(row, b.now)
		if !b.add([]*swarmpb.Write{w}, g) {
			return
		}
	}
}

// addressPass is one Reconcile of a network.
type addressPass struct {
	*batch
	network *swarmpb.Network
	space   space
	pool    *numbers
	// waiting are the tasks that get no address, with what they have, and vips the number of services that have none.
	waiting []waiting
	vips    int
}

type waiting struct {
	task      *swarmpb.Task
	addresses *swarmpb.TaskAddresses
}

func (p *addressPass) run() {
	progress := p.view.NetworkProgress(p.network.GetId())
	if progress.GetSubnet() == "" && progress.GetMessage() == "" {
		return // it is about to get one
	}
	problem := progress.GetMessage()
	if problem == "" {
		var err error
		if p.space, err = spaceOf(progress); err != nil {
			problem = err.Error()
		}
	}
	if problem == "" {
		p.pool = p.numbers(p.space.pool, p.space.first, p.space.last, false)
	}
	last := ""
	for service := range p.view.TemplatesOn(p.network.GetId()) {
		if service != last {
			last = service
			p.service(service)
		}
	}
	if problem != "" {
		p.explain(fmt.Sprintf("network %s has no addresses: %s", p.network.GetSpec().GetName(), problem))
		return
	}
	switch {
	case p.vips > 0 && p.pool.left(): // the services are about to get theirs, and the alarm is what makes them look
	case len(p.waiting)+p.vips > 0:
		text := p.full()
		p.explain(text)
		p.raise(p.space.pool, text)
	case !p.plan.More:
		p.end(p.space.pool)
	}
	p.pool.forget()
}

// service gives its tasks that wait an address.
func (p *addressPass) service(id string) {
	version, wanted := uint64(0), []*swarmpb.NetworkAttachment(nil)
	for task, addresses := range p.view.UnaddressedOf(id) {
		if p.plan.More {
			return
		}
		if !task.GetDesiredState().Wanted() {
			continue
		}
		if v := task.GetTemplateVersion(); v != version {
			version, wanted = v, p.view.Template(id, v).GetSpec().GetNetworks()
		}
		if attached(wanted, p.network.GetId()) && find(addresses.GetNetworks(), p.network.GetId()) == nil {
			p.give(task, addresses, wanted)
		}
	}
	if wants(p.view, id, p.network.GetId()) {
		p.vips++
	}
}

// wants tells whether a service waits for its VIP in a network.
func wants(view *store.View, serviceID, networkID string) bool {
	endpoint := view.ServiceEndpoint(serviceID)
	if endpoint.GetMessage() == "" {
		return false
	}
	service := view.Service(serviceID)
	return !service.GetRemoving() && hasVIPs(service) && find(endpoint.GetVips(), networkID) == nil && attached(service.GetSpec().GetTask().GetNetworks(), networkID)
}

func attached(networks []*swarmpb.NetworkAttachment, networkID string) bool {
	return slices.ContainsFunc(networks, func(n *swarmpb.NetworkAttachment) bool { return n.GetNetwork() == networkID })
}

func find(addresses []*swarmpb.NetworkAddress, networkID string) *swarmpb.NetworkAddress {
	for _, a := range addresses {
		if a.GetNetworkId() == networkID {
			return a
		}
	}
	return nil
}

// give adds an address of the network to a task's row.
func (p *addressPass) give(task *swarmpb.Task, old *swarmpb.TaskAddresses, wanted []*swarmpb.NetworkAttachment) {
	if p.pool == nil {
		p.waiting = append(p.waiting, waiting{task, old})
		return
	}
	n, version, ok := p.pool.next(nil)
	if !ok {
		p.waiting = append(p.waiting, waiting{task, old})
		return
	}
	row := &swarmpb.TaskAddresses{TaskId: task.GetId()}
	for _, network := range wanted {
		if network.GetNetwork() == p.network.GetId() {
			row.Networks = append(row.Networks, p.space.address(p.network.GetId(), n))
		} else if a := find(old.GetNetworks(), network.GetNetwork()); a != nil {
			row.Networks = append(row.Networks, swarmpb.Clone(a))
		}
	}
	if len(row.Networks) < len(wanted) && !p.ours(old.GetMessage()) {
		row.Message = old.GetMessage()
	}
	address := store.NumberedAddress(n)
	p.add([]*swarmpb.Write{
		allocation(p.space.pool, address, task.GetId()),
		putRow(&swarmpb.Row{Row: &swarmpb.Row_TaskAddresses{TaskAddresses: row}}),
	},
		guard(swarmpb.AllocationKey(p.space.pool, address), version),
		guard(swarmpb.TaskAddressesKey(task.GetId()), old.GetVersion()),
		p.same())
}

// same is the guard that the network stays.
func (p *addressPass) same() *swarmpb.Guard {
	return guard(swarmpb.NetworkKey(p.network.GetId()), p.network.GetMeta().GetVersion())
}

// ours tells whether a task's message is about this network.
func (p *addressPass) ours(message string) bool {
	return strings.HasPrefix(message, "network "+p.network.GetSpec().GetName()+" ")
}

// full says what is the matter with the pool.
func (p *addressPass) full() string {
	// Every address has a row by now, or gets one in this plan.
	used := int(p.space.last-p.space.first) + 1 - p.space.reserved(p.view) + len(p.pool.taken)
	for range p.view.Resting(p.space.pool) {
		used--
	}
	return fmt.Sprintf("network %s (%s) is full: %d addresses are in use, %d more are wanted; scale down, or attach to a network with a larger subnet "+
		"(an address that was released is given again after %s)",
		p.network.GetSpec().GetName(), p.space.subnet, used, len(p.waiting)+p.vips, Rest)
}

// explain tells the tasks that wait why. What another network's message says stays until that one has an address.
func (p *addressPass) explain(message string) {
	for i, waits := range p.waiting {
		task, old := waits.task, waits.addresses
		if text := old.GetMessage(); text == message || (text != "" && (i >= maxRefreshed || !p.ours(text))) {
			continue
		}
		row := &swarmpb.TaskAddresses{TaskId: task.GetId(), Message: message}
		for _, a := range old.GetNetworks() {
			row.Networks = append(row.Networks, swarmpb.Clone(a))
		}
		if !p.add([]*swarmpb.Write{putRow(&swarmpb.Row{Row: &swarmpb.Row_TaskAddresses{TaskAddresses: row}})},
			guard(swarmpb.TaskAddressesKey(task.GetId()), old.GetVersion())) {
			return
		}
	}
}
