package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// revisionRow is a version of a service in a listing.
type revisionRow struct {
	Version         uint64 `json:"version"`
	Current         bool   `json:"current"`
	At              string `json:"at"`
	Author          string `json:"author"`
	Cause           string `json:"cause"`
	Image           string `json:"image"`
	ImageDigest     string `json:"imageDigest"`
	TemplateVersion uint64 `json:"templateVersion"`
	// State is the update's, empty while nothing is known of it or when it was superseded, which Message says.
	State     string `json:"state"`
	Message   string `json:"message"`
	OutcomeAt string `json:"outcomeAt"`

	at int64
}

func newRevisionRow(r *swarmpb.RevisionInfo) revisionRow {
	revision, container := r.GetRevision(), r.GetRevision().GetSpec().GetTask().GetContainer()
	return revisionRow{
		Version: revision.GetRevision(), Current: r.GetCurrent(), At: stamp(revision.GetAt()), at: revision.GetAt(), Author: revision.GetAuthor(), Cause: revision.GetCause(),
		Image: container.GetImage(), ImageDigest: container.GetImageDigest(), TemplateVersion: revision.GetTemplateVersion(),
		State: updateStateWord(r.GetOutcome().GetState()), Message: r.GetOutcome().GetMessage(), OutcomeAt: stamp(r.GetOutcome().GetAt()),
	}
}

// outcome is what became of a version, in words.
func (r revisionRow) outcome() string {
	state := strings.ReplaceAll(r.State, "_", " ")
	switch {
	case state == "":
		return r.Message
	case r.Message == "" || r.Message == state || r.State == "completed" || r.Message == "update in progress":
		return state
	}
	return state + ": " + r.Message
}

func (a *app) serviceHistoryCommand() *cobra.Command {
	var l listing
	cmd := &cobra.Command{
		Use: "history SERVICE", Short: "List the versions that a service has had",
		Long: `List the versions that a service has had, the newest first: when, by whom and why, and what became of the rollout. The
last 10 are kept. * marks the one that the service has now. "service diff" compares them, "service rollback --to VERSION" goes
back to one.`,
		Example: `  swarmctl service history web
  swarmctl service history --format '{{.Version}} {{.Author}} {{.Image}}' web
  swarmctl service diff web 3 5
  swarmctl service rollback --to 3 web`,
		Args: oneArg("service"), ValidArgsFunction: first(a.complete(serviceNames)),
		RunE: a.call(func(ctx context.Context, c *client, args []string) error {
			revisions, err := history(ctx, c, args[0])
			if err != nil {
				return err
			}
			var rows []revisionRow
			for _, r := range revisions {
				rows = append(rows, newRevisionRow(r))
			}
			return printRows(a.out, a.width, l, rows, table[revisionRow]{func(r revisionRow) string { return fmt.Sprint(r.Version) }, []column[revisionRow]{
				{"VERSION", func(r revisionRow) string {
					if r.Current {
						return fmt.Sprint(r.Version, " *")
					}
					return fmt.Sprint(r.Version)
				}, false},
				{"WHEN", func(r revisionRow) string { return a.ago(r.at) }, false},
				{"WHO", func(r revisionRow) string { return r.Author }, true},
				{"CAUSE", func(r revisionRow) string { return r.Cause }, true},
				{"IMAGE", func(r revisionRow) string { return r.Image }, true},
				{"OUTCOME", revisionRow.outcome, true},
			}})
		}),
	}
	l.define(cmd)
	cmd.Flags().Lookup("quiet").Usage = "print only version numbers"
	a.reading(cmd)
	return cmd
}

// wentBack is why a service's last update was rolled back; empty where it was not, or a user wanted it. The tasks that failed are gone from the list
// where they had slots of their own, as a canary's have.
func wentBack(s *swarmpb.ServiceInfo) string {
	update := s.GetProgress().GetUpdate()
	if rolloutWord(update) != "rolled back" {
		return ""
	}
	for _, o := range s.GetProgress().GetOutcomes() {
		if o.GetRevision() == update.GetRevision() && o.GetMessage() != "" && o.GetMessage() != update.GetMessage() {
			return fmt.Sprintf("version %d was rolled back: %s; `swarmctl service history %s` lists all versions", o.GetRevision(), o.GetMessage(), s.GetService().GetSpec().GetName())
		}
	}
	return ""
}

// history is a service's versions, the newest first.
func history(ctx context.Context, c *client, service string) ([]*swarmpb.RevisionInfo, error) {
	r, err := c.GetServiceHistory(ctx, &swarmpb.GetServiceHistoryRequest{Service: service})
	if err != nil {
		return nil, err
	}
	revisions := slices.Clone(r.GetRevisions())
	slices.SortStableFunc(revisions, func(x, y *swarmpb.RevisionInfo) int {
		return int(int64(y.GetRevision().GetRevision()) - int64(x.GetRevision().GetRevision()))
	})
	return revisions, nil
}

// parseVersion reads the number of a version.
func parseVersion(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is no version; want a number as `swarmctl service history` shows it", s)
	}
	return n, nil
}

// pickVersion finds a version among those that are kept.
func pickVersion(service string, revisions []*swarmpb.RevisionInfo, version uint64) (*swarmpb.RevisionInfo, error) {
	var kept []string
	for _, r := range revisions {
		if r.GetRevision().GetRevision() == version {
			return r, nil
		}
		kept = append(kept, fmt.Sprint(r.GetRevision().GetRevision()))
	}
	return nil, fmt.Errorf("service %s: version %d is not kept; there are %s", service, version, orNone(kept))
}

// specDiff is what differs between two versions.
type specDiff struct {
	Service string        `json:"service"`
	From    uint64        `json:"from"`
	To      uint64        `json:"to"`
	Changes []fieldChange `json:"changes"`
}

func (a *app) serviceDiffCommand() *cobra.Command {
	var f format
	cmd := &cobra.Command{
		Use: "diff SERVICE [VERSION [VERSION]]", Short: "Show what differs between versions of a service",
		Long: `Show, field by field, what differs between two versions of a service: the previous and the current one, a VERSION and the
current one, or two of them. Fields are named as "service inspect" has them. Of a list the elements are shown that came (+)
and went (-); ~ marks a value that is another one.`,
		Example: `  swarmctl service diff web
  swarmctl service diff web 3
  swarmctl service diff --format json web 3 5 | jq -r '.changes[].field'`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 || len(args) > 3 {
				return usageError(cmd, "name one service and at most two of its versions")
			}
			for _, arg := range args[1:] {
				if _, err := parseVersion(arg); err != nil {
					return fmt.Errorf("service diff: %w", err)
				}
			}
			return nil
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
			switch len(args) {
			case 0:
				return a.complete(serviceNames)(cmd, args, word)
			case 1, 2:
				return a.complete(versionsOf(args[0]))(cmd, args, word)
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: a.call(func(ctx context.Context, c *client, args []string) error {
			revisions, err := history(ctx, c, args[0])
			if err != nil {
				return err
			}
			from, to, err := diffed(args[0], args[1:], revisions)
			if err != nil {
				return err
			}
			d := &specDiff{args[0], from.GetRevision().GetRevision(), to.GetRevision().GetRevision(), diffFields(specFields(from.GetRevision().GetSpec()), specFields(to.GetRevision().GetSpec()))}
			if name := to.GetRevision().GetSpec().GetName(); name != "" {
				d.Service = name
			}
			switch f.kind {
			case formatJSON:
				return printJSON(a.out, d)
			case formatTemplate:
				return f.execute(a.out, fieldsOf[*specDiff](), []any{d})
			}
			_, _ = fmt.Fprintf(a.out, "%s: %s -> %s\n\n", d.Service, a.versionText(from), a.versionText(to))
			if len(d.Changes) == 0 {
				_, err := fmt.Fprintln(a.out, "Nothing differs.")
				return err
			}
			a.printChanges(a.out, d.Changes)
			return nil
		}),
	}
	f.define(cmd, "text", formatJSON)
	a.reading(cmd)
	return cmd
}

// diffed are the two versions that the arguments mean.
func diffed(service string, args []string, revisions []*swarmpb.RevisionInfo) (from, to *swarmpb.RevisionInfo, err error) {
	now := slices.IndexFunc(revisions, (*swarmpb.RevisionInfo).GetCurrent)
	if now < 0 || len(args) == 0 && now+1 >= len(revisions) {
		return nil, nil, fmt.Errorf("service %s has had no other version than the current one; there is nothing to compare", service)
	}
	to = revisions[now]
	if len(args) == 0 {
		return revisions[now+1], to, nil
	}
	picked := []*swarmpb.RevisionInfo{nil, to}
	for i, arg := range args {
		version, err := parseVersion(arg)
		if err == nil {
			picked[i], err = pickVersion(service, revisions, version)
		}
		if err != nil {
			return nil, nil, err
		}
	}
	return picked[0], picked[1], nil
}

// versionText names a version with when and by whom.
func (a *app) versionText(r *swarmpb.RevisionInfo) string {
	text := fmt.Sprintf("version %d (%s", r.GetRevision().GetRevision(), a.ago(r.GetRevision().GetAt()))
	if by := r.GetRevision().GetAuthor(); by != "" {
		text += " by " + by
	}
	return clean(text + ")")
}

// versionsOf completes to the versions of a service.
func versionsOf(service string) names {
	return func(ctx context.Context, c *client) ([]cobra.Completion, error) {
		revisions, err := history(ctx, c, service)
		var out []cobra.Completion
		for _, r := range revisions {
			row := newRevisionRow(r)
			out = append(out, cobra.CompletionWithDesc(fmt.Sprint(row.Version), strings.TrimSpace(row.Image+" "+row.Cause)))
		}
		return out, err
	}
}
