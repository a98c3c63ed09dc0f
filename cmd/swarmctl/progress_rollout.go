package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/durationpb"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// shownFailures is how many tasks that failed are named when a rollout has.
const shownFailures = 3

// rollout is the update that a wait is about; nil: there is none, or it has not begun.
func (p *picture) rollout() *swarmpb.UpdateStatus {
	u, s := p.service.GetProgress().GetUpdate(), p.service.GetService()
	if p.former != 0 && u.GetStartedAt() == p.former {
		return nil
	}
	// One that is rolled back by itself goes elsewhere than the service says, and remembers from where.
	if to := u.GetTemplateVersion(); to != 0 && to != s.GetTemplateVersion() && u.GetFailedTemplateVersion() != s.GetTemplateVersion() {
		return nil
	}
	return u
}

// superseded tells whether the service goes to yet another version than the one that is waited for.
func (p *picture) superseded() error {
	s := p.service.GetService()
	if p.template == 0 {
		p.template, p.revision = s.GetTemplateVersion(), s.GetRevision()
		return nil
	}
	if s.GetTemplateVersion() == p.template || s.GetRevision() <= p.revision {
		return nil
	}
	what := "the rollout of " + p.name()
	if p.goal.revision != 0 {
		what = fmt.Sprintf("version %d of %s", p.goal.revision, p.name())
	}
	return fmt.Errorf("%s was superseded by version %d before it was done; see `swarmctl service history %s`", what, s.GetRevision(), p.name())
}

// unobeyed tells whether the leader has yet to do what the user told it.
func (p *picture) unobeyed(u *swarmpb.UpdateStatus) bool {
	command := p.service.GetService().GetCommand()
	return (p.goal.told || p.goal.paused) && u.Underway() && command.GetTemplateVersion() == u.GetTemplateVersion() && command.GetSequence() > u.GetCommandSequence()
}

// current tells whether a task of the template is one that the rollout leaves. After one that was rolled back by itself the
// service still names the template that failed, and its tasks stay at the one before.
func (p *picture) current(u *swarmpb.UpdateStatus, template uint64) bool {
	want := p.service.GetService().GetTemplateVersion()
	if last := p.service.GetProgress().GetUpdate(); want != 0 && last.GetFailedTemplateVersion() == want {
		want = last.GetTemplateVersion()
	}
	if u.Underway() && u.GetTemplateVersion() != 0 {
		return template == u.GetTemplateVersion() || u.Sets() // beside the new set stands the old one, of whatever templates
	}
	return template == want
}

// judgeRollout says what the update's state means for the wait. ended: nothing else counts.
func (p *picture) judgeRollout(u *swarmpb.UpdateStatus, v *verdict, now time.Time) (ended bool) {
	name := p.name()
	switch u.GetState() {
	case swarmpb.UpdateState_UPDATE_STATE_PAUSED, swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_PAUSED:
		if p.goal.paused {
			v.done = true
			p.tellStage(u, v, now)
			v.note = fmt.Sprintf("paused; `swarmctl service resume %s` goes on, `swarmctl service abort %s` goes back", name, name)
			return true
		}
		p.tellStage(u, v, now)
		v.err = p.failure(u, v, "is "+strings.ReplaceAll(u.GetState().Name(), "_", " "),
			fmt.Sprintf("go on with `swarmctl service resume %s`, or back with `swarmctl service abort %s`", name, name))
		return true
	case swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_COMPLETED:
		if p.goal.back {
			return false
		}
		v.err = p.failure(u, v, "was rolled back", fmt.Sprintf("see what differs with `swarmctl service diff %s`", name))
		return true
	case swarmpb.UpdateState_UPDATE_STATE_COMPLETED:
		if p.goal.paused {
			v.err = fmt.Errorf("the rollout of %s was done before it could be paused", name)
			return true
		}
		return false
	case swarmpb.UpdateState_UPDATE_STATE_UPDATING, swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_STARTED:
		p.tellStage(u, v, now)
	}
	return false
}

// waitsForPerson tells whether the rollout goes on only when a person, or the end of a grace, says so.
func waitsForPerson(u *swarmpb.UpdateStatus) bool {
	return u.GetPhase() == swarmpb.RolloutPhase_ROLLOUT_PHASE_WAITING || u.GetPhase() == swarmpb.RolloutPhase_ROLLOUT_PHASE_GRACE
}

// forPerson ends a wait where the rollout waits for a person, or for the end of the grace after one has promoted it.
func (p *picture) forPerson(u *swarmpb.UpdateStatus, v *verdict, now time.Time) bool {
	name := p.name()
	fresh, stable := p.setNames(u)
	switch u.GetPhase() {
	case swarmpb.RolloutPhase_ROLLOUT_PHASE_WAITING:
		v.note = fmt.Sprintf("waiting for promote: %s is up beside %s, with %s; `swarmctl service promote %s` goes on, `swarmctl service abort %s` goes back",
			fresh, stable, trafficText(u.GetShare()), name, name)
	case swarmpb.RolloutPhase_ROLLOUT_PHASE_GRACE:
		v.note = fmt.Sprintf("promoted: %s has all traffic; %s stays for %s more, and until then `swarmctl service abort %s` goes back at once",
			fresh, stable, left(u, p.grace(), now), name)
	default:
		return false
	}
	v.done = true
	return true
}

func (p *picture) grace() time.Duration {
	return p.service.GetService().GetSpec().GetUpdate().PromoteGraceOr()
}

// left is how long a phase goes on, in whole seconds.
func left(u *swarmpb.UpdateStatus, whole time.Duration, now time.Time) string {
	passed := now.Sub(time.Unix(0, u.GetPhaseSince()))
	return spell(max(min(whole-passed, whole), 0).Round(time.Second))
}

// spell is a duration without zeros that say nothing.
func spell(d time.Duration) string { return span(durationpb.New(d)) }

func trafficText(share uint32) string {
	switch share {
	case 0:
		return "no traffic"
	case swarmpb.WholeShare:
		return "all traffic"
	}
	return percent(share) + " of the traffic"
}

// setNames are the two versions that an update is about, as users know them.
func (p *picture) setNames(u *swarmpb.UpdateStatus) (fresh, stable string) {
	fresh, stable = "the new version", "the old one"
	if u.GetRevision() != 0 && u.GetFailedTemplateVersion() == 0 { // on its way back by itself it goes to another one
		fresh = fmt.Sprintf("version %d", u.GetRevision())
	}
	for _, set := range p.service.GetSets() {
		switch name := setName(set); {
		case name == "":
		case set.GetTemplateVersion() == u.GetTemplateVersion():
			fresh = name
		case set.GetTemplateVersion() == u.GetStableTemplateVersion():
			stable = name
		}
	}
	return fresh, stable
}

func setName(s *swarmpb.SetInfo) string {
	if s.GetRevision() == 0 {
		return ""
	}
	return fmt.Sprintf("version %d", s.GetRevision())
}

// tellStage puts into words where the rollout is.
func (p *picture) tellStage(u *swarmpb.UpdateStatus, v *verdict, now time.Time) {
	v.rolling = true
	fresh, _ := p.setNames(u)
	verb := "updating"
	switch {
	case u.Paused():
		verb = "paused on the way"
	case u.GetState() == swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_STARTED:
		verb = "rolling back"
	case p.goal.back, u.GetPhase() == swarmpb.RolloutPhase_ROLLOUT_PHASE_RETURNING:
		verb = "going back"
	}
	if len(p.service.GetSets()) == 0 { // a manager that does not tell more
		v.summary += "; " + verb
		return
	}
	stage, whole := p.stage(u)
	if u.Paused() {
		stage, whole = "", 0
	}
	v.headline = fmt.Sprintf("%s to %s (%s)%s", verb, fresh, strategyText(u, p.service.GetService().GetSpec().GetUpdate()), stage)
	v.summary = v.headline
	if why := waitReason(u); why != "" {
		v.summary += ": " + why
	}
	if metric := p.service.GetMetric().GetMessage(); metric != "" && u.GetStrategy() == swarmpb.UpdateStrategy_UPDATE_STRATEGY_CANARY {
		v.summary += "; metric: " + metric
	}
	if whole > 0 {
		v.countdown = "; " + left(u, whole, now) + " left"
	}
	v.sets, v.setsText = setLines(p.service.GetSets(), u.Sets())
}

// waitReason is what an update that moves waits for, or why it goes back. What its messages say besides, the phase says too.
func waitReason(u *swarmpb.UpdateStatus) string {
	text := strings.TrimPrefix(strings.TrimPrefix(u.GetMessage(), "update in progress"), "rollback in progress")
	text = strings.TrimPrefix(text, ": ")
	switch {
	case u.Paused(), u.GetPhase() == swarmpb.RolloutPhase_ROLLOUT_PHASE_WAITING:
		return ""
	case strings.HasPrefix(text, "waiting for "), u.GetState() == swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_STARTED && u.GetFailedTemplateVersion() != 0:
		return text
	}
	return ""
}

// cause is why an update has failed: of one that was rolled back, the history says it.
func (p *picture) cause(u *swarmpb.UpdateStatus) string {
	for _, o := range p.service.GetProgress().GetOutcomes() {
		if ended(u) && o.GetRevision() == cmp.Or(p.goal.revision, p.service.GetService().GetRevision()) && o.GetMessage() != "" {
			return o.GetMessage()
		}
	}
	return cmp.Or(u.GetMessage(), "no reason is known")
}

// strategyText is the strategy, of a canary with its step: canary, step 1 of 3. The last one is that with all.
func strategyText(u *swarmpb.UpdateStatus, c *swarmpb.UpdateConfig) string {
	if u.GetStrategy() != swarmpb.UpdateStrategy_UPDATE_STRATEGY_CANARY || u.GetPhase() == swarmpb.RolloutPhase_ROLLOUT_PHASE_RETURNING {
		return u.GetStrategy().Name()
	}
	last := uint32(len(c.CanaryStepsOr()))
	return fmt.Sprintf("canary, step %d of %d", min(u.GetStep(), last)+1, last+1)
}

// stage is the phase in words, and how long it lasts; 0 = as long as it takes.
func (p *picture) stage(u *swarmpb.UpdateStatus) (text string, whole time.Duration) {
	c := p.service.GetService().GetSpec().GetUpdate()
	switch u.GetPhase() {
	case swarmpb.RolloutPhase_ROLLOUT_PHASE_PREPARING:
		return ", images are pulled and nothing is stopped yet", 0
	case swarmpb.RolloutPhase_ROLLOUT_PHASE_STARTING:
		return ", new replicas start", 0
	case swarmpb.RolloutPhase_ROLLOUT_PHASE_WATCHING:
		whole = defaultMonitor
		if c.GetMonitor() != nil {
			whole = c.GetMonitor().AsDuration()
		}
		if steps := c.CanaryStepsOr(); u.GetStrategy() == swarmpb.UpdateStrategy_UPDATE_STRATEGY_CANARY && int(u.GetStep()) < len(steps) {
			whole = steps[u.GetStep()].GetWatch().AsDuration()
		}
		if whole == 0 {
			return ", watched", 0
		}
		return ", watched for " + spell(whole), whole
	case swarmpb.RolloutPhase_ROLLOUT_PHASE_WAITING:
		return ", waiting for promote", 0
	case swarmpb.RolloutPhase_ROLLOUT_PHASE_GRACE:
		return ", grace of " + spell(p.grace()), p.grace()
	case swarmpb.RolloutPhase_ROLLOUT_PHASE_ENDING:
		return ", the old replicas stop", 0
	case swarmpb.RolloutPhase_ROLLOUT_PHASE_RETURNING:
		return ", it has all traffic again and the others stop", 0
	}
	return "", 0
}

// setLines are the versions that have replicas: each on a line of its own, and all on one.
func setLines(sets []*swarmpb.SetInfo, traffic bool) (lines []string, one string) {
	type cells [4]string
	var rows []cells
	var widths [4]int
	for _, s := range sets {
		r := cells{cmp.Or(setName(s), fmt.Sprintf("template %d", s.GetTemplateVersion())), s.GetImage(), fmt.Sprintf("%d of %d up", s.GetUp(), s.GetTasks())}
		if s.GetTasks() == 0 {
			r[2] = "no replicas"
		}
		if s.GetUnhealthy() > 0 {
			r[2] += fmt.Sprintf(" (%d unhealthy)", s.GetUnhealthy())
		}
		if traffic {
			r[3] = trafficText(s.GetShare())
		}
		for i, cell := range r {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
		rows = append(rows, r)
	}
	var all []string
	for _, r := range rows {
		line := ""
		for i, cell := range r {
			line += cell + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2)
		}
		lines = append(lines, strings.TrimRight(line, " "))
		text := r[0] + ": " + r[2]
		if r[3] != "" {
			text += ", " + r[3]
		}
		all = append(all, text)
	}
	return lines, strings.Join(all, "; ")
}

// failure is why a rollout did not do what was wanted, with the tasks at fault, on one screen.
func (p *picture) failure(u *swarmpb.UpdateStatus, v *verdict, what, advice string) error {
	update := "update of " + p.name()
	if n := cmp.Or(p.goal.revision, p.service.GetService().GetRevision()); n != 0 {
		update += fmt.Sprintf(" to version %d", n)
	}
	lines := []string{fmt.Sprintf("%s %s: %s", update, what, p.cause(u))}
	lines = append(lines, p.failedTasks(u)...)
	if len(lines) == 1 {
		shown, more := troubles(v.replicas, shownFailures)
		for _, r := range shown {
			lines = append(lines, fmt.Sprintf("  %s: %s", r.name, r.trouble))
		}
		if more != "" {
			lines = append(lines, "  "+more)
		}
	}
	return errors.New(strings.Join(append(lines, fmt.Sprintf("see `swarmctl service ps %s`; %s", p.name(), advice)), "\n"))
}

// failedTasks are the newest tasks of the version that the update went to which failed, with how to see what they wrote.
func (p *picture) failedTasks(u *swarmpb.UpdateStatus) (lines []string) {
	wanted := cmp.Or(u.GetFailedTemplateVersion(), u.GetTemplateVersion(), p.service.GetService().GetTemplateVersion())
	var tasks []*swarmpb.TaskInfo
	for _, t := range p.tasks {
		if failed(t) && t.GetTask().GetTemplateVersion() == wanted {
			tasks = append(tasks, t)
		}
	}
	slices.SortFunc(tasks, func(x, y *swarmpb.TaskInfo) int {
		return cmp.Or(cmp.Compare(y.GetTask().GetAttempt(), x.GetTask().GetAttempt()), cmp.Compare(x.GetName(), y.GetName()))
	})
	for _, t := range tasks[:min(len(tasks), shownFailures)] {
		line := "  " + t.GetName()
		if t.GetNodeHostname() != "" {
			line += " on " + t.GetNodeHostname()
		}
		why := cmp.Or(t.GetError(), t.GetMessage(), t.GetState().Name())
		lines = append(lines, line+": "+why)
		if said := strings.TrimSpace(t.GetStatus().GetHealth().GetOutput()); said != "" && !strings.Contains(why, said) {
			lines = append(lines, "    its probe said: "+clean(said))
		}
		if t.GetStatus().GetContainer().GetStartedAt() != 0 || t.GetState() == swarmpb.TaskState_TASK_STATE_FAILED {
			lines = append(lines, fmt.Sprintf("    its last lines: `swarmctl service logs --tail 20 %s`", short(t.GetTask().GetId())))
		}
	}
	if more := len(tasks) - shownFailures; more > 0 {
		lines = append(lines, fmt.Sprintf("  and %s that failed", count(more, "more task")))
	}
	return lines
}
