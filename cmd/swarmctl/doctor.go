package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// checkRow is what one check of the doctor found.
type checkRow struct {
	Check   string `json:"check"`
	Finding string `json:"finding"` // ok, warning or problem
	Detail  string `json:"detail"`
	Advice  string `json:"advice"` // what to do; empty when all is well
}

// Widths of the doctor's table, whose rows are written as they come: some checks take seconds.
const (
	checkWidth   = 28
	findingWidth = 9
)

func (a *app) nodeDoctorCommand() *cobra.Command {
	var f format
	cmd := &cobra.Command{
		Use: "doctor", Short: "Check whether this host can do what services ask of it, and say what to do where it cannot",
		Long: `Check this host: what its kernel has, forwarding and other tools' firewall rules, ports, the way and the packet size to each other
node, and the clock. Below each finding that is not ok stands what to do.

A warning is something that works, with a drawback; a problem is something that does not work. The exit code is 1 when there is a
problem. On a host that does not run well, start here.`,
		Example: "  swarmctl node doctor\n  swarmctl node doctor --format json",
		Args:    noArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.call(func(ctx context.Context, c *client, _ []string) error {
			stream, err := c.local.Doctor(ctx, &swarmpb.DoctorRequest{})
			if err != nil {
				return err
			}
			var rows []checkRow
			for {
				r, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					return errors.Join(a.printChecks(f, rows), err)
				}
				row := checkRow{Check: r.GetCheck(), Finding: r.GetFinding().Name(), Detail: r.GetDetail(), Advice: r.GetAdvice()}
				if f.kind == formatTable {
					a.printCheck(row, len(rows) == 0)
				}
				rows = append(rows, row)
			}
			return errors.Join(a.printChecks(f, rows), verdictOf(rows))
		}),
	}
	f.define(cmd, formatTable, formatJSON)
	return cmd
}

// printCheck writes one row, the first one below the titles.
func (a *app) printCheck(r checkRow, first bool) {
	line := func(check, finding, detail string) {
		text := fmt.Sprintf("%-*s %-*s %s", checkWidth, check, findingWidth, finding, detail)
		_, _ = fmt.Fprintln(a.out, strings.TrimRight(clean(text), " "))
	}
	if first {
		line("CHECK", "FINDING", "DETAIL")
	}
	line(r.Check, r.Finding, r.Detail)
	if r.Advice != "" && r.Finding != swarmpb.Finding_FINDING_OK.Name() {
		line("", "", "-> "+r.Advice)
	}
}

// printChecks writes all rows, in the forms that are not written one by one.
func (a *app) printChecks(f format, rows []checkRow) error {
	if f.kind == formatTable {
		return nil
	}
	return printRows(a.out, 0, listing{format: f}, rows, table[checkRow]{})
}

// verdictOf is the error that the command ends with; nil when nothing is a problem.
func verdictOf(rows []checkRow) error {
	found := map[string]int{}
	for _, r := range rows {
		found[r.Finding]++
	}
	problems, warnings := found[swarmpb.Finding_FINDING_PROBLEM.Name()], found[swarmpb.Finding_FINDING_WARNING.Name()]
	switch {
	case len(rows) == 0:
		return errors.New("node doctor: swarmd on this host made no check; its log says why")
	case problems == 0:
		return nil
	case warnings == 0:
		return fmt.Errorf("node doctor: %s; what to do stands with each", count(problems, "problem"))
	}
	return fmt.Errorf("node doctor: %s and %s; what to do stands with each", count(problems, "problem"), count(warnings, "warning"))
}
