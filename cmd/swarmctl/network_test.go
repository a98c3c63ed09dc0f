package main

import (
	"io"
	"os"
	"strings"
	"testing"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

var given = &swarmpb.NetworkProgress{Vni: 4099, Subnet: "10.0.4.0/24"}

func TestNetwork_EveryListing_ReadsAsBefore(t *testing.T) {
	f := start(t, false)
	golden(t, "network", f.play(
		"network ls", "network ls -q", "network ls --format json --filter name=db", "network ls --format '{{.Name}} {{.Subnet}} {{join .Services `,`}}'",
		"network ls -q --filter label=team=shop", "network ls -q -f label=team -f label=tier=back", "network ls -q -f name=ac -f name=ol", "network ls -q -f driver=overlay -f id=db0", "network ls -f driver=bridge",
		"network inspect back", "network inspect --pretty back db full old open", "network inspect -f '{{.Spec.Name}} {{.Progress.VNI}} {{.AddressesUsed}}/{{.AddressesTotal}}' back db", "network inspect -f '{{.Progress.Vni}}' back",
	))
	f.control.networks = nil
	golden(t, "network_none", f.play("network ls", "network ls --format json", "network prune"))
}

func TestNetworkCreate_Flags_MakeTheSpec(t *testing.T) {
	f := start(t, false)
	var got strings.Builder
	for _, line := range []string{
		"plain",
		"--subnet 10.20.0.0/24 --gateway 10.20.0.254 --ip-range 10.20.0.128/25 one",
		"--ipv6 --subnet fd00:20::/64 --subnet 10.20.0.0/24 --gateway 10.20.0.1 --gateway fd00:20::1 two",
		"-d overlay --internal --attachable --encrypted --opt mtu=1400 --label a=1 --label b all",
		"-o com.docker.network.driver.mtu=1300 -o encrypted docker",
		"-o encrypted=false clear",
	} {
		f.control.made, f.control.network = nil, []func(*fakeControl){give(given)}
		o := f.run(append([]string{"network", "create"}, strings.Fields(line)...)...)
		if o.code != 0 || o.stdout == "" || f.control.made == nil {
			t.Fatalf("%s: %+v", line, o)
		}
		got.WriteString("$ swarmctl network create " + line + "\n" + messageText(t, f.control.made) + "\n")
	}
	golden(t, "network_spec", got.String())
}

func TestNetworkCreate_WhatItIsGiven_ComesAtOnceLaterOrNot(t *testing.T) {
	f := start(t, false)
	f.control.warnings = []string{"encrypted: 1 of 2 nodes have no WireGuard in the kernel and encrypt in a process, at 2 to 11 % of the throughput; load the module wireguard there"}
	f.patience = time.Minute
	f.control.network = []func(*fakeControl){func(*fakeControl) {}, give(given)}
	got := f.play("network create --encrypted later")
	f.control.warnings, f.control.network = nil, []func(*fakeControl){give(&swarmpb.NetworkProgress{Message: poolFull})}
	got += f.play("network create refused")
	var known []*swarmpb.NetworkInfo // of a manager that lags behind for one answer
	f.control.warnings, f.control.network = nil, []func(*fakeControl){
		func(c *fakeControl) { known, c.networks = c.networks, nil }, func(c *fakeControl) { c.networks = known; give(given)(c) },
	}
	got += f.play("network create behind")
	f.patience = 0
	f.control.network = []func(*fakeControl){func(c *fakeControl) { c.networks = nil }}
	golden(t, "network_create", got+f.play("network create gone", "network create never"))
}

func TestNetworkRemove_InUseGoneOrSlow_SaysSo(t *testing.T) {
	f := start(t, false)
	f.patience = time.Minute
	f.control.network = []func(*fakeControl){func(*fakeControl) {}, removed}
	got := f.play("network rm db nope back")
	f.patience = 0
	golden(t, "network_rm", got+f.play("network rm full"))
}

func TestNetworkPrune_AskedOrForced_RemovesWhatNoServiceUses(t *testing.T) {
	f := start(t, false)
	got := f.play("network prune") // nobody answers
	f.stdin = "no\n"
	got += f.play("network prune")
	f.stdin = "y\n"
	f.control.network = []func(*fakeControl){removed, removed}
	got += f.play("network prune --filter label=tier", "network ls -q")
	f.stdin = ""
	f.control.network = []func(*fakeControl){removed}
	golden(t, "network_prune", got+f.play("network prune -f", "network ls -q", "network prune -f"))
}

func TestNetworkPrune_TakenIntoUseMeanwhile_IsNoError(t *testing.T) {
	f := start(t, false)
	f.control.network = []func(*fakeControl){func(c *fakeControl) { // while the first one goes
		removed(c)
		for _, n := range c.networks {
			n.Services = []string{"api"}
		}
	}}
	if o := f.run("network", "prune", "-f"); o.code != 0 || o.stdout != "db\n" {
		t.Errorf("%+v", o)
	}
}

func TestConfirm_CtrlCInsteadOfAnAnswer_Ends(t *testing.T) {
	f := start(t, false)
	in, typed := io.Pipe()
	defer typed.Close()
	f.input = readFunc(func(b []byte) (int, error) {
		f.cancel()
		return in.Read(b)
	})
	if o := f.run("network", "prune"); o.code != exitInterrupted || !strings.Contains(o.stderr, "[y/N]") || f.control.networks[1].Network.Removing {
		t.Errorf("%+v", o)
	}
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(b []byte) (int, error) { return f(b) }

func TestNetwork_WrongInput_OneLineAndExit1(t *testing.T) {
	f := start(t, false)
	f.control.services = append(f.control.services, shopFixture())
	var got strings.Builder
	for _, line := range []string{
		"network", "network create", "network create a b", "network inspect", "network rm", "network prune extra", "network ls extra", "network crate",
		"network create back", "network create host", "network create 'a b'", "network create --driver bridge a", "network create --subnet 10.20.0.0 a", "network create --subnet 10.20.0.1/24 a",
		"network create --subnet fd00:20::/64 a", "network create --subnet 10.20.0.0/24 --subnet 10.21.0.0/24 a", "network create --subnet 10.20.0.0/30 a",
		"network create --gateway 10.20.0.1 a", "network create --ip-range 10.20.0.0/25 a", "network create --subnet 10.20.0.0/24 --gateway 10.21.0.1 a", "network create --subnet 10.20.0.0/24 --gateway x a",
		"network create --ipv6 --subnet 10.20.0.0/24 --subnet fd00:20::/64 --gateway 10.21.0.1 a", "network create --subnet 10.20.0.0/24 --gateway 10.20.0.1 --gateway 10.20.0.2 a",
		"network create --subnet 10.20.0.0/24 --ip-range 10.21.0.0/25 a", "network create --opt mtu=9 a", "network create --opt colour=red a", "network create --opt =x a", "network create --opt encrypted=perhaps a",
		"network create --label =x a", "network ls --filter team=shop", "network ls --filter name=", "network inspect nope", "network inspect --pretty nope", "network rm nope",
		"service create -p 1.2.3.4:8080:80 nginx", "service create -p 8000-8010:80-81 nginx", "service create -p 8000:80-81 nginx", "service create -p 8010-8000:80 nginx", "service create -p 1-2000:1-2000 nginx",
		"service create -p 80-x nginx", "service create -p published=8080,target=80,source=other nginx", "service create -p published=8080,target=80,affinity=cookie nginx",
		"service create -p mode=host,target=80,source=nat nginx", "service create -p 2377:80 nginx", "service create -p 8080:80 -p 8080:81 nginx", "service create -p published=,target=80 nginx",
		"service create --network '' nginx", "service create --network alias=db nginx", "service create --network name=back,ip=10.0.0.9 nginx", "service create --network back --network back nginx",
		"service create --network-alias db nginx", "service create --network back --network-alias 'a b' nginx", "service create --endpoint-mode rr nginx",
		"service create --dns ns1 nginx", "service create --dns-search 'a b' nginx", "service create --dns-option 'a b' nginx", "service create --host db nginx", "service create --host db:main nginx", "service create --add-host unix:///x nginx",
		"service create --host tcp://10.0.0.1:2377 nginx",
		"service update --network-add nope shop", "service update --network-rm nope shop", "service update --network-rm full shop", "service update --network-add full --network-add full shop", "service update --network-alias x shop",
		"service update --network-add alias=x shop", "service update --publish-rm 81 shop", "service update --publish-rm 8081:80 shop", "service update --publish-rm 80/udp shop", "service update --publish-add 80000:1 shop",
		"service update --dns-rm 1.1.1.1 shop", "service update --dns-search-rm x shop", "service update --dns-option-rm x shop", "service update --host-rm nope shop", "service update --host-rm db:1.1.1.1 shop", "service update --host-rm db:x shop",
		"service update --host-add db shop", "service update --endpoint-mode rr shop",
		"init --default-addr-pool 10.0.0.0", "init --default-addr-pool 10.0.0.0/8 --default-addr-pool 10.1.0.0/16", "init --default-addr-pool 10.0.0.0/16 --default-addr-pool-mask-length 8", "init --default-addr-pool-mask-length 31",
		"init --data-path-port 80", "init --data-path-port 7946", "init --data-path-port x", "node doctor n1", "node doctor --format yaml",
	} {
		args, err := splitWords(line)
		if err != nil {
			t.Fatal(err)
		}
		o := f.run(args...)
		got.WriteString("$ swarmctl " + line + "\n" + o.stdout + o.stderr + "\n")
		if line == "network" {
			continue // it is its help
		}
		if o.code != exitFailed || strings.Count(o.stderr, "\n") != 1 && !strings.Contains(line, "inspect") {
			t.Errorf("%s: %+v", line, o)
		}
	}
	golden(t, "network_wrong", got.String())
}

func TestCreate_NetworkFlags_MakeTheSpec(t *testing.T) {
	f := start(t, false)
	var got strings.Builder
	for _, line := range []string{
		"--network back --network name=db,alias=main,alias=primary --network-alias shop nginx", "--endpoint-mode dnsrr --network back nginx",
		"-p 8080:80 -p 53:53/udp -p 70 -p published=443,target=8443,source=nat,affinity=client-ip -p mode=host,published=9000,target=90,protocol=sctp nginx",
		"-p 8000-8002:80-82 nginx", "-p 8000-8001:80 nginx", "-p 90-91/udp nginx", "-p published=8000-8001,target=80-81,affinity=none,source=client nginx",
		"--dns 192.168.1.1 --dns fd00::53 --dns-search example.org --dns-option ndots:2 --host db:192.168.1.5 --host six:fd00::1 --add-host five=10.0.0.5 --add-host seven:[fd00::7] nginx",
	} {
		f.control.created = nil
		if o := f.run(append([]string{"service", "create", "-d"}, strings.Fields(line)...)...); o.code != 0 || o.stderr != "" {
			t.Fatalf("%s: %+v", line, o)
		}
		got.WriteString("$ swarmctl service create -d " + line + "\n" + specText(t, f.control.created) + "\n")
	}
	golden(t, "network_create_spec", got.String())
}

func TestUpdate_NetworkFlags_ChangeOnlyWhatTheySay(t *testing.T) {
	f := start(t, false)
	f.control.services = append(f.control.services, shopFixture())
	before := strings.Split(specText(t, shopFixture().Service.Spec), "\n")
	var got strings.Builder
	for _, line := range []string{
		"--network-rm db --network-add full --network-alias x", "--network-add name=back,alias=other", "--endpoint-mode dnsrr", "--publish-add 8081:80 --publish-rm 90", "--publish-add 8080:81",
		"--publish-rm 8080:80 --publish-rm 53/udp --publish-rm mode=host,target=9000", "--publish-rm 8000-8002", "--publish-add 7000-7001:1-2",
		"--dns-rm fd00::53 --dns-add 1.1.1.1 --dns-search-rm example.org --dns-option-add use-vc --dns-option-rm ndots:2", "--dns-rm fd00::53 --dns-rm 192.168.1.1 --dns-search-rm example.org --dns-option-rm ndots:2",
		"--host-rm db --host-rm six:fd00::1 --host-add db:10.0.0.1", "--host-rm main --host-rm db --host-add new:10.0.0.1",
	} {
		f.control.updated = nil
		if o := f.run(append(append([]string{"service", "update", "-d"}, strings.Fields(line)...), "shop")...); o.code != 0 {
			t.Fatalf("%s: %+v", line, o)
		}
		got.WriteString("$ swarmctl service update -d " + line + " shop\n" + changedLines(before, strings.Split(specText(t, f.control.updated[0]), "\n")) + "\n")
	}
	golden(t, "network_update_spec", got.String())
	f.control.updated = nil
	for _, line := range []string{"--dns-add 192.168.1.1", "--host-add six:fd00::1", "--network-add name=back,alias=store,alias=market"} { // what it has already
		if o := f.run(append(append([]string{"service", "update", "-d"}, strings.Fields(line)...), "shop")...); o.code != 0 || len(f.control.updated) > 0 {
			t.Errorf("%s: %+v, updated %v", line, o, f.control.updated)
		}
	}
}

func TestService_InTheMesh_ShowsWhereItIsReachedAndWhatKeepsClientsAway(t *testing.T) {
	f := start(t, false)
	f.control.services = append(f.control.services, shopFixture())
	waiting := f.control.tasks[3]
	waiting.State, waiting.Message, waiting.Error = swarmpb.TaskState_TASK_STATE_NEW, "", "network back (10.0.1.0/24) is full; scale something down there, or attach the service to a network with a larger subnet"
	f.control.tasks[0].ServiceName, f.control.tasks[0].Name = "shop", "shop.1"
	f.control.tasks[0].Addresses = &swarmpb.TaskAddresses{Networks: []*swarmpb.NetworkAddress{
		{NetworkId: backID, Address: "10.0.1.2"}, {NetworkId: dbID, Address: "10.0.2.130", Address6: "fd12:3456:789a:1::82"},
	}}
	golden(t, "network_service", f.play(
		"service ls", "service inspect --pretty shop", "service inspect -f '{{json .Spec.Endpoint}} {{json .NetworkNames}} {{json .Conflicts}}' shop",
		"service ps shop", "service ps --no-trunc shop web", "service ps -q shop", "service ps --format json --filter id=nope shop", "task inspect --pretty shop.1", "task inspect -f '{{json .Addresses}} {{json .NetworkNames}}' shop.1",
	))
}

func TestNodeInspect_NetworkTroubles_AreShown(t *testing.T) {
	f := start(t, false)
	f.control.nodes[0].Status.Description.Network = &swarmpb.NodeNetwork{
		Wireguard: "userspace", WireguardKey: make([]byte, 32), Problems: []string{"no VXLAN in the kernel: load the module vxlan"},
		Conflicts: []*swarmpb.PortConflict{{Protocol: swarmpb.Protocol_PROTOCOL_TCP, Port: 80, Process: "nginx (pid 12)"}},
	}
	golden(t, "network_node", f.play("node inspect --pretty n2"))
}

func TestCreate_HostFlag_IsASocketOrAHost(t *testing.T) {
	f := start(t, false)
	o := f.run("service", "create", "-d", "--host", "unix://"+f.socket, "--host", "db:192.168.1.5", "nginx")
	if o.code != 0 || len(f.control.created.Task.Container.Hosts) != 1 || f.control.created.Task.Container.Hosts[0] != "192.168.1.5 db" {
		t.Errorf("%+v; created %v", o, f.control.created)
	}
	o = f.run("service", "create", "-d", "--host", "unix:///nonexistent", "nginx")
	if o.code != exitFailed || !strings.Contains(o.stderr, "swarmd does not run on this host") {
		t.Errorf("%+v", o)
	}
	a := &app{out: os.Stdout, err: os.Stderr}
	if a.command(); a.host != defaultHost {
		t.Errorf("host is %s", a.host)
	}
}

func TestInit_AddressPools_AreTheClustersAndShownByInfo(t *testing.T) {
	f := start(t, false)
	f.run("init", "--default-addr-pool", "172.20.0.0/14", "--default-addr-pool", "192.168.128.0/17", "--default-addr-pool-mask-length", "23", "--data-path-port", "4790")
	spec := f.local.init.Spec
	if len(spec.DefaultAddrPools) != 2 || spec.DefaultAddrPoolMaskLength != 23 || spec.DataPathPort != 4790 {
		t.Errorf("%v", spec)
	}
	f.control.cluster.Spec = spec
	golden(t, "network_info", f.play("info", "info -f '{{join .Cluster.AddressPools `,`}} {{.Cluster.SubnetLength}} {{.Cluster.DataPathPort}}'"))
}

func TestDoctor_EveryOutcome_ReadsAsBefore(t *testing.T) {
	const (
		fine = swarmpb.Finding_FINDING_OK
		warn = swarmpb.Finding_FINDING_WARNING
		bad  = swarmpb.Finding_FINDING_PROBLEM
	)
	f := start(t, true)
	f.local.checks = []*swarmpb.DoctorResponse{{Check: "kernel nftables", Finding: fine, Detail: "works"}, {Check: "kernel vxlan", Finding: fine, Detail: "works"}}
	got := f.play("node doctor")
	f.local.checks = append(f.local.checks, &swarmpb.DoctorResponse{Check: "kernel wireguard", Finding: warn, Detail: "none; networks are encrypted in a process", Advice: "load the module wireguard"})
	got += f.play("node doctor")
	f.local.checks = append(f.local.checks, &swarmpb.DoctorResponse{
		Check: "mtu to a-host-with-quite-a-long-name", Finding: bad, Detail: "1400 of 1500 bytes arrive\x1b[31m", Advice: "set the MTU of eth0 to 1400, here and there, or let the firewall pass ICMP",
	}, &swarmpb.DoctorResponse{Check: "clock", Finding: fine, Detail: "0.02 s off"})
	got += f.play("node doctor", "node doctor --format json", "node doctor --format '{{.Check}}={{.Finding}}'")
	f.local.fail = wire.Errorf(wire.CodeUnavailable, "this swarmd is stopping")
	got += f.play("node doctor")
	f.local.checks, f.local.fail = nil, nil
	golden(t, "doctor", got+f.play("node doctor"))
}
