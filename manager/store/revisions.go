package store

import (
	"fmt"
	"iter"
	"strings"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func lessRevision(a, b *swarmpb.ServiceRevision) bool {
	if c := strings.Compare(a.ServiceId, b.ServiceId); c != 0 {
		return c < 0
	}
	return a.Revision < b.Revision
}

// ServiceRevision is a spec that a service has had; nil when it is not kept.
func (v *View) ServiceRevision(serviceID string, revision uint64) *swarmpb.ServiceRevision {
	row, _ := v.revisions.Get(&swarmpb.ServiceRevision{ServiceId: serviceID, Revision: revision})
	return row
}

// RevisionsOf are the specs that a service has had, as far as they are kept, the oldest first.
func (v *View) RevisionsOf(serviceID string) iter.Seq[*swarmpb.ServiceRevision] {
	return from(v.revisions, &swarmpb.ServiceRevision{ServiceId: serviceID}, func(r *swarmpb.ServiceRevision) bool {
		return r.ServiceId == serviceID
	})
}

// ServiceMetric is what a service's canary metric says; nil while nobody asks.
func (v *View) ServiceMetric(serviceID string) *swarmpb.ServiceMetric {
	metric, _ := v.metrics.Get(serviceID)
	return metric
}

// putRevision adds to a service's history, in order, and forgets what is older than MaxRevisions.
func (t *tx) putRevision(row *swarmpb.ServiceRevision) *refusal {
	service := t.Service(row.ServiceId)
	if service == nil {
		return gone(swarmpb.ServiceKey(row.ServiceId))
	}
	row.ServiceId = service.Id
	key := swarmpb.ServiceRevisionKey(row.ServiceId, row.Revision)
	if old := t.ServiceRevision(row.ServiceId, row.Revision); old != nil {
		if proto.Equal(old, row) {
			return nil
		}
		return reused(key)
	}
	for newer := range from(t.revisions, row, func(r *swarmpb.ServiceRevision) bool { return r.ServiceId == row.ServiceId }) {
		return conflict(key, "%s: version %d is newer", key.Describe(), newer.Revision)
	}
	t.shareRevision(row)
	t.write(swarmpb.Table_TABLE_SERVICE_REVISION, keyOf(key), nil, row)
	t.dropRevisions(service.Id, MaxRevisions)
	return nil
}

// shareRevision makes a revision's task spec that of its template: most revisions of a service differ in nothing else, and
// a thousand services have ten thousand.
func (t *tx) shareRevision(row *swarmpb.ServiceRevision) {
	template := t.Template(row.ServiceId, row.TemplateVersion)
	if template.GetSpec() != nil && proto.Equal(template.Spec, row.GetSpec().GetTask()) {
		row.Spec.Task = template.Spec
	}
}

// dropRevisions takes the oldest revisions of a service away until so many are left.
func (t *tx) dropRevisions(serviceID string, left int) {
	var all []*swarmpb.ServiceRevision
	for revision := range t.RevisionsOf(serviceID) {
		all = append(all, revision)
	}
	for _, revision := range all[:max(0, len(all)-left)] {
		t.write(swarmpb.Table_TABLE_SERVICE_REVISION, Key{ID: serviceID, Number: revision.Revision}, revision, nil)
	}
}

func (t *tx) setRevision(key Key, row proto.Message) {
	if old := t.ServiceRevision(key.ID, key.Number); old != nil {
		t.refer(key.ID, old.TemplateVersion, -1)
	}
	setItem(t.revisions, &swarmpb.ServiceRevision{ServiceId: key.ID, Revision: key.Number}, row)
	if revision, ok := row.(*swarmpb.ServiceRevision); ok {
		t.refer(key.ID, revision.TemplateVersion, +1)
	}
}

func (t *tx) putMetric(row *swarmpb.ServiceMetric) *refusal {
	service := t.Service(row.ServiceId)
	if service == nil {
		return gone(swarmpb.ServiceKey(row.ServiceId))
	}
	row.ServiceId = service.Id
	row.Meta = t.stamp(t.ServiceMetric(row.ServiceId).GetMeta())
	return t.replace(swarmpb.Table_TABLE_SERVICE_METRIC, Key{ID: row.ServiceId}, row)
}

// revisions goes through the histories of the services, which have no more than they may.
func (r *rebuild) revisions(v *View) error {
	var err error
	count := make(map[string]int)
	v.revisions.Scan(func(revision *swarmpb.ServiceRevision) bool {
		r.refer(revision.ServiceId, revision.TemplateVersion)
		count[revision.ServiceId]++
		switch {
		case v.Service(revision.ServiceId) == nil:
			err = fmt.Errorf("version %d is of service %s, which is not there", revision.Revision, revision.ServiceId)
		case count[revision.ServiceId] > MaxRevisions:
			err = fmt.Errorf("service %s has more than %d revisions", revision.ServiceId, MaxRevisions)
		}
		return err == nil
	})
	if err != nil {
		return err
	}
	for metric := range values(v.metrics) {
		if v.Service(metric.ServiceId) == nil {
			return fmt.Errorf("a metric is of service %s, which is not there", metric.ServiceId)
		}
	}
	return nil
}
