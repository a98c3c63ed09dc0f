package store

import (
	"fmt"
	"iter"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// attachment says that tasks of a template are in a network.
type attachment struct {
	network string
	service string
	version uint64
}

func lessAttachment(a, b attachment) bool {
	if a.network != b.network {
		return a.network < b.network
	}
	if a.service != b.service {
		return a.service < b.service
	}
	return a.version < b.version
}

// Network is a network by ID.
func (v *View) Network(id string) *swarmpb.Network {
	network, _ := v.networks.Get(id)
	return network
}

// NetworkByName is a network by its full name.
func (v *View) NetworkByName(name string) *swarmpb.Network {
	id, ok := v.networkNames.Get(name)
	if !ok {
		return nil
	}
	return v.Network(id)
}

// Networks are all networks, by ID.
func (v *View) Networks() iter.Seq[*swarmpb.Network] { return values(v.networks) }

// NetworkCount is the number of networks.
func (v *View) NetworkCount() int { return v.networks.Len() }

// NetworkProgress is what a network was given.
func (v *View) NetworkProgress(networkID string) *swarmpb.NetworkProgress {
	progress, _ := v.networkProgress.Get(networkID)
	return progress
}

// ServiceEndpoint is what a service was given.
func (v *View) ServiceEndpoint(serviceID string) *swarmpb.ServiceEndpoint {
	endpoint, _ := v.endpoints.Get(serviceID)
	return endpoint
}

// attachedTo are the templates whose tasks are in a network, by service and version.
func (v *View) attachedTo(networkID string) iter.Seq[attachment] {
	return from(v.attachments, attachment{network: networkID}, func(a attachment) bool { return a.network == networkID })
}

// TemplatesOn are the templates whose tasks are in the network, by service and version.
func (v *View) TemplatesOn(networkID string) iter.Seq2[string, uint64] {
	return func(yield func(service string, version uint64) bool) {
		for a := range v.attachedTo(networkID) {
			if !yield(a.service, a.version) {
				return
			}
		}
	}
}

// NetworkInUse says by whom a network is used so that it may not be deleted; empty = by nobody.
func (v *View) NetworkInUse(networkID string) string {
	if refused := v.inUse(networkID, v.Network(networkID).GetSpec().GetName(), true); refused != nil {
		return refused.message
	}
	return ""
}

// ServicesOn are the services that are in the network, by ID: by their spec, or by an update on its way, which may go back.
// The previous spec alone keeps a service in no network.
func (v *View) ServicesOn(networkID string) iter.Seq[*swarmpb.Service] {
	return func(yield func(*swarmpb.Service) bool) {
		last := ""
		for a := range v.attachedTo(networkID) {
			service := v.Service(a.service)
			if service == nil || a.service == last || !v.goesTo(service, a.version) {
				continue
			}
			last = a.service
			if !yield(service) {
				return
			}
		}
	}
}

// TasksOnNetwork is the number of tasks in the network that have not ended.
func (v *View) TasksOnNetwork(networkID string) int {
	total := 0
	for a := range v.attachedTo(networkID) {
		total += v.liveTasks(a)
	}
	return total
}

func (v *View) liveTasks(a attachment) int {
	live := 0
	for state, n := range v.Counts(a.service, a.version) {
		if !state.Ended() {
			live += n
		}
	}
	return live
}

// lacks tells whether a task is to get addresses that are not there: one in each network of its template.
func (v *View) lacks(task *swarmpb.Task, addresses *swarmpb.TaskAddresses) bool {
	wanted := v.Template(task.ServiceId, task.TemplateVersion).GetSpec().GetNetworks()
	for _, network := range wanted {
		if !hasAddress(addresses, network.GetNetwork()) {
			return true
		}
	}
	return false
}

func hasAddress(addresses *swarmpb.TaskAddresses, networkID string) bool {
	for _, a := range addresses.GetNetworks() {
		if a.GetNetworkId() == networkID && a.GetAddress() != "" {
			return true
		}
	}
	return false
}

// attach keeps the attachments of a template that comes (and is set) or goes.
func (t *tx) attach(template *swarmpb.Template, set bool) {
	for _, network := range template.GetSpec().GetNetworks() {
		a := attachment{network.GetNetwork(), template.ServiceId, template.Version}
		if set {
			t.attachments.Set(a)
		} else {
			t.attachments.Delete(a)
		}
	}
}

func (t *tx) putNetwork(row *swarmpb.Network) *refusal {
	name := row.GetSpec().GetName()
	if name == "" {
		return invalid("network %s: it has no name", row.Id)
	}
	if other, taken := t.networkNames.Get(name); taken && other != row.Id {
		return conflict(swarmpb.NetworkKey(other), "network name %q is taken by network %s", name, other)
	}
	old := t.Network(row.Id)
	// What its removal has let go of does not come back.
	row.Removing = row.Removing || old.GetRemoving()
	if row.Removing && !old.GetRemoving() {
		if refused := t.inUse(row.Id, name, false); refused != nil {
			return refused
		}
	}
	row.Meta = t.stamp(old.GetMeta())
	return t.replace(swarmpb.Table_TABLE_NETWORK, Key{ID: row.Id}, row)
}

func (t *tx) putNetworkProgress(row *swarmpb.NetworkProgress) *refusal {
	network := t.Network(row.NetworkId)
	if network == nil {
		return gone(swarmpb.NetworkKey(row.NetworkId))
	}
	row.NetworkId = network.Id
	row.Meta = t.stamp(t.NetworkProgress(row.NetworkId).GetMeta())
	return t.replace(swarmpb.Table_TABLE_NETWORK_PROGRESS, Key{ID: row.NetworkId}, row)
}

func (t *tx) putEndpoint(row *swarmpb.ServiceEndpoint) *refusal {
	service := t.Service(row.ServiceId)
	if service == nil {
		return gone(swarmpb.ServiceKey(row.ServiceId))
	}
	row.ServiceId = service.Id
	row.Meta = t.stamp(t.ServiceEndpoint(row.ServiceId).GetMeta())
	return t.replace(swarmpb.Table_TABLE_SERVICE_ENDPOINT, Key{ID: row.ServiceId}, row)
}

// deleteNetwork refuses while a service is to run in it or a task lives there.
func (t *tx) deleteNetwork(network *swarmpb.Network) *refusal {
	if refused := t.inUse(network.Id, network.Spec.GetName(), true); refused != nil {
		return refused
	}
	if progress := t.NetworkProgress(network.Id); progress != nil {
		t.write(swarmpb.Table_TABLE_NETWORK_PROGRESS, Key{ID: network.Id}, progress, nil)
	}
	t.write(swarmpb.Table_TABLE_NETWORK, Key{ID: network.Id}, network, nil)
	return nil
}

// inUse refuses to take a network away from a service that is to run in it, or from tasks that live there. Services
// that are being removed themselves count only when even they must have gone.
func (v *View) inUse(networkID, name string, removing bool) *refusal {
	for a := range v.attachedTo(networkID) {
		service := v.Service(a.service)
		if service == nil || (service.Removing && !removing) {
			continue
		}
		if v.goesTo(service, a.version) {
			return conflict(swarmpb.ServiceKey(service.Id),
				"network %q is in use by service %q; detach it there (swarmctl service update --network-rm) or remove the service first",
				name, service.Spec.GetName())
		}
		if n := v.liveTasks(a); n > 0 {
			return conflict(swarmpb.ServiceKey(service.Id), "network %q still has %d tasks of service %q in it; wait until they have stopped",
				name, n, service.Spec.GetName())
		}
	}
	return nil
}

// goesTo tells whether a service makes tasks of a template, or may by itself: its spec's, those of an update on its way,
// and the one that this may go back to. What only a user may go back to does not count: a network may go for all that
// the service's history names it, and then that revision cannot come back.
func (v *View) goesTo(service *swarmpb.Service, version uint64) bool {
	if version == service.TemplateVersion {
		return true
	}
	needed := rolloutTemplates(v.ServiceProgress(service.Id))
	return version == needed[0] || version == needed[1] || needed[0] != 0 && version == service.PreviousTemplateVersion
}

// checkNetworks refuses a service whose tasks would be in a network that is not there, or about to go.
func (t *tx) checkNetworks(service *swarmpb.Service) *refusal {
	if service.Removing {
		return nil
	}
	for _, a := range t.Template(service.Id, service.TemplateVersion).GetSpec().GetNetworks() {
		switch network := t.Network(a.GetNetwork()); {
		case network == nil:
			return conflict(swarmpb.NetworkKey(a.GetNetwork()), "service %q: network %s is gone", service.Spec.GetName(), a.GetNetwork())
		case network.Removing:
			return conflict(swarmpb.NetworkKey(network.Id), "service %q: network %q is being removed",
				service.Spec.GetName(), network.Spec.GetName())
		}
	}
	return nil
}

// setDrained notes the time at tasks that have none yet. A task without a status has never had a connection.
func (t *tx) setDrained(op *swarmpb.SetDrained) *refusal {
	if n := len(op.GetTaskIds()); n > MaxWrites {
		return invalid("set drained: %d tasks, at most %d are taken", n, MaxWrites)
	}
	if op.GetAt() <= 0 {
		return invalid("set drained: the time is %d", op.GetAt())
	}
	for _, id := range op.TaskIds {
		task := t.taskRow(id)
		if task == nil || task.status == nil || task.status.DrainedAt != 0 {
			continue
		}
		row := copyStatus(task.status)
		row.DrainedAt = op.At
		t.sharePart(task, row)
		row.Version = t.index
		t.writePart(swarmpb.Table_TABLE_TASK_STATUS, task, task.status, row)
	}
	return nil
}

// verifyNetworks checks what is kept of networks against the rows.
func (v *View) verifyNetworks() error {
	for network := range v.Networks() {
		if id, _ := v.networkNames.Get(network.GetSpec().GetName()); id != network.Id {
			return fmt.Errorf("name %q leads to network %q, not %s", network.GetSpec().GetName(), id, network.Id)
		}
	}
	if v.networkNames.Len() != v.networks.Len() {
		return fmt.Errorf("%d names of networks are kept, the rows give %d", v.networkNames.Len(), v.networks.Len())
	}
	attachments := map[attachment]bool{}
	var err error
	v.templates.Scan(func(item templateItem) bool {
		for _, network := range item.template.GetSpec().GetNetworks() {
			a := attachment{network.GetNetwork(), item.service, item.version}
			attachments[a] = true
			if _, ok := v.attachments.Get(a); !ok {
				err = fmt.Errorf("template %d of service %s is not among those in network %s", a.version, a.service, a.network)
			}
		}
		return err == nil
	})
	if err == nil && len(attachments) != v.attachments.Len() {
		err = fmt.Errorf("%d templates in networks are kept, the rows give %d", v.attachments.Len(), len(attachments))
	}
	for service := range v.Services() {
		for _, a := range v.Template(service.Id, service.TemplateVersion).GetSpec().GetNetworks() {
			if err == nil && !service.Removing && v.Network(a.GetNetwork()) == nil {
				err = fmt.Errorf("service %s is in network %s, which is not there", service.Id, a.GetNetwork())
			}
		}
	}
	return err
}
