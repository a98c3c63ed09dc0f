package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

func TestHelp_EveryCommand_ReadsAsBefore(t *testing.T) {
	f := start(t, false)
	var lines []string
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		lines = append(lines, strings.TrimSpace(nameOf(cmd)+" --help"))
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk((&app{out: io.Discard}).command())
	golden(t, "help", f.play(lines...))
}

func TestListing_EveryForm_ReadsAsBefore(t *testing.T) {
	f := start(t, false)
	f.local.images = []*swarmpb.Image{
		{Name: "docker.io/library/whoami:v1", Digest: "sha256:" + strings.Repeat("1", 64), SizeBytes: 7_812_345, CreatedAt: before(1e15)},
		{Name: "docker.io/library/api:2", Digest: "sha256:" + strings.Repeat("2", 64), SizeBytes: 812},
	}
	for name, command := range map[string]string{
		"service_ls": "service ls", "service_ps": "service ps web", "node_ls": "node ls", "node_ps": "node ps n2", "task_ls": "task ls", "image_ls": "image ls",
	} {
		field := "{{.Name}}"
		if name == "node_ls" {
			field = "{{.Hostname}}"
		}
		golden(t, name, f.play(
			command, command+" -q", command+" --format json", command+" --format '"+field+`\t{{.ID | upper}}'`,
			command+" --format 'table "+field+`\t{{json .}}'`, command+" --format '{{.Nope}}'",
		))
	}
	golden(t, "ps_flags", f.play("service ps --no-trunc web", "service ps --current web", "node ps", "service ps web nope", "service ps nope"))
	golden(t, "ps_filter", f.play(
		"service ps --filter state=failed --no-trunc web", "service ps --filter name=web.2 --filter node=n2 --filter node=n1 web", "service ps -q --filter desired-state=running web",
		"task ls -q --filter id=web11", "service ls -q --filter name=we", "service ls -q -f label=team=shop -f label=tier", "service ls -q -f label=team=ops", "service ls -q -f mode=replicated -f id=api", "service ls -f team=shop", "node ps -q --filter state=pending", "service ps --filter state=gone web", "service ps --filter image=whoami web", "service ps --filter name= web",
	))
}

func TestListing_NothingThere_PrintsTitlesOrAnEmptyArray(t *testing.T) {
	f := start(t, false)
	f.control.nodes, f.control.services, f.control.tasks = nil, nil, nil
	golden(t, "empty", f.play(
		"service ls", "service ls -q", "service ls --format json", "node ls --format json", "task ls", "task ls --format json",
		"task ls --format '{{.ID}}'", "task ls --format 'table {{.ID}}\t{{.DesiredState}}'", "image ls --format json",
	))
}

func TestListing_NarrowTerminal_CutsInsteadOfWrapping(t *testing.T) {
	f := start(t, false)
	f.terminal, f.width = true, 100
	got := f.play("service ps web", "node ls")
	for line := range strings.Lines(got) {
		if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > f.width {
			t.Errorf("%d characters: %s", n, line)
		}
	}
	golden(t, "narrow", got)
}

func TestInspect_EveryNounAndForm_ReadsAsBefore(t *testing.T) {
	f := start(t, false)
	for name, lines := range map[string][]string{
		"service_inspect": {
			"service inspect web", "service inspect --pretty web api", "service inspect -f '{{.Spec.Task.Container.Image}} {{.Spec.Mode.Replicated.Replicas}} {{join .Spec.Task.Container.Env `,`}}' web api",
			"service inspect -f '{{.Spec.Update.Delay}}|{{.Spec.Task.Resources.Limits.NanoCPUs}}' api", "service inspect -f '{{json .Spec.Endpoint.Ports}}' web",
			"service inspect web nope", "service inspect nope", "service inspect --pretty nope", "service inspect -f '{{.Nope}}' web",
		},
		"node_inspect": {"node inspect n2", "node inspect --pretty self n2", "node inspect -f '{{.Status.State}} {{.ID}} {{.Spec.Labels.disk}}' self"},
		"task_inspect": {"task inspect web230000000000000000task", "task inspect --pretty web.1 web230000000000000000task", "task inspect -f '{{.State}} {{.DesiredState}} {{.Error}}' web.1"},
	} {
		golden(t, name, f.play(lines...))
	}
}

func TestHost_EveryCommand_ReadsAsBefore(t *testing.T) {
	archive := filepath.Join(t.TempDir(), "web.tar")
	if err := os.WriteFile(archive, make([]byte, 3*chunkSize/2), 0o600); err != nil {
		t.Fatal(err)
	}
	f := start(t, false)
	f.local.images = []*swarmpb.Image{{Name: "docker.io/library/whoami:v1", Digest: "sha256:" + strings.Repeat("1", 64), SizeBytes: 7_812_345}}
	f.stdin = "an archive"
	got := f.play(
		"init --advertise-addr 10.0.0.1", "init -q", "join --token SWMTKN-1-worker 10.0.0.1", "join-token worker", "join-token manager", "join-token -q manager",
		"join-token --rotate worker", "info", "info --format json", "info -f '{{.NodeID}} {{.Cluster.Leader}} {{.CPUs}}'", "info -f '{{.Nope}}'", "version", "leave", "leave --force",
		"image load -", "image load -q -", "image load "+archive, "image rm docker.io/library/whoami:v1 nope",
		"node rm n2", "node rm n1 nope", "node rm --force n1",
	)
	golden(t, "host", strings.ReplaceAll(got, archive, "web.tar"))
	if want := 2*len(f.stdin) + 3*chunkSize/2; len(f.local.loaded) != want {
		t.Errorf("loaded %d bytes, want %d", len(f.local.loaded), want)
	}
	if f.local.joined.Managers[0] != "10.0.0.1:2377" {
		t.Errorf("joined at %v", f.local.joined.Managers)
	}
}

func TestInit_Flags_MakeTheClustersSpec(t *testing.T) {
	f := start(t, false)
	f.run("init", "--fabric-pool", "10.192.0.0/10", "--fabric-block-length", "25", "--cert-expiry", "2h", "--task-history-limit", "0")
	spec := f.local.init.Spec
	if spec.FabricPool != "10.192.0.0/10" || spec.FabricBlockLength != 25 || spec.NodeCertExpiry.AsDuration().Hours() != 2 || spec.TaskHistoryLimit == nil || *spec.TaskHistoryLimit != 0 {
		t.Errorf("%v", spec)
	}
	if f.run("init"); f.local.init.Spec.TaskHistoryLimit != nil || f.local.init.Spec.NodeCertExpiry != nil {
		t.Errorf("flags that were not given are set: %v", f.local.init.Spec)
	}
}

func TestInfo_WorkerNoClusterOrNoLeader_ShowsWhatItCan(t *testing.T) {
	worker := start(t, true)
	worker.local.info.Problems = []string{"no OCI runtime: install runc"}
	got := worker.play("info", "info --format json")
	worker.local.info = &swarmpb.GetInfoResponse{
		Membership: swarmpb.Membership_MEMBERSHIP_NONE, Version: "1.0.0", DataDir: "/var/lib/swarmd", RunDir: "/run/swarmd", ContainerdAddress: "/run/swarmd/containerd.sock",
	}
	got += worker.play("info", "info --format json")
	manager := start(t, false)
	manager.control.fail = wire.Errorf(wire.CodeUnavailable, "the cluster has no leader; wait, or bring its managers back")
	manager.local.info.CertificateExpiresAt = before(48e12)
	golden(t, "info", got+manager.play("info"))
}
