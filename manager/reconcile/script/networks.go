package script

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// doNetwork makes a network whose ID is its name, or marks it as removed.
func (w *World) doNetwork(args []string) error {
	if len(args) > 1 && args[1] == "removed" {
		network := swarmpb.Clone(w.View().Network(args[0]))
		if network == nil {
			return fmt.Errorf("there is no network %q", args[0])
		}
		network.Removing = true
		return w.Write(Put(&swarmpb.Row{Row: &swarmpb.Row_Network{Network: network}}))
	}
	spec := &swarmpb.NetworkSpec{Name: args[0]}
	for _, pair := range args[1:] {
		switch key, value, _ := strings.Cut(pair, "="); key {
		case "subnet":
			spec.Subnets = append(spec.Subnets, &swarmpb.NetworkSubnet{Subnet: value})
		case "ipv6":
			spec.Ipv6 = true
		default:
			return fmt.Errorf("a network has no %q", key)
		}
	}
	return w.Write(Put(&swarmpb.Row{Row: &swarmpb.Row_Network{Network: &swarmpb.Network{Id: args[0], Spec: spec}}}))
}

// doTry prints why a command was refused.
func (w *World) doTry(args []string) (string, error) {
	printed, err := w.Do(args...)
	if err != nil {
		return err.Error() + "\n", nil
	}
	return printed + "done\n", nil
}

// doNetworks prints what the networks were given.
func (w *World) doNetworks([]string) (string, error) {
	view := w.View()
	var b strings.Builder
	for network := range view.Networks() {
		p := view.NetworkProgress(network.Id)
		fmt.Fprintf(&b, "%s: %s\n", network.Spec.Name, strings.Join(filled(
			p.GetMessage(), p.GetSubnet(), p.GetGateway(), p.GetSubnet6(), p.GetGateway6()), " "))
	}
	for alarm := range view.Alarms() {
		fmt.Fprintf(&b, "alarm %s of %s: %s\n", alarm.Kind, alarm.Object, alarm.Message)
	}
	return cmp.Or(b.String(), "no networks\n"), nil
}

// doEndpoint prints what a service and its tasks that have not ended were given.
func (w *World) doEndpoint(args []string) (string, error) {
	view := w.View()
	var b strings.Builder
	endpoint := view.ServiceEndpoint(args[0])
	for _, vip := range endpoint.GetVips() {
		fmt.Fprintf(&b, "%s: VIP %s\n", vip.NetworkId, strings.Join(filled(vip.Address, vip.Address6), " "))
	}
	for _, port := range endpoint.GetPorts() {
		fmt.Fprintf(&b, "port %d/%s -> %d\n", port.PublishedPort, port.Protocol.Name(), port.TargetPort)
	}
	if endpoint.GetMessage() != "" {
		fmt.Fprintln(&b, endpoint.Message)
	}
	table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for task := range view.TasksOf(args[0]) {
		rows := view.TaskRows(task.Id)
		if rows.Observed.Ended() {
			continue
		}
		var addresses []string
		for _, a := range rows.Addresses.GetNetworks() {
			addresses = append(addresses, filled(a.NetworkId, a.Address, a.Address6)...)
		}
		name := fmt.Sprintf("%s#%d", swarmpb.TaskName(view.Service(args[0]).GetSpec().GetName(), task.Slot, task.NodeId), task.Attempt)
		fmt.Fprintln(table, strings.Join(filled(name, rows.Observed.Name(), strings.Join(addresses, " "), rows.Addresses.GetMessage()), "\t"))
	}
	if err := table.Flush(); err != nil {
		return "", err
	}
	return cmp.Or(b.String(), "nothing\n"), nil
}

func filled(words ...string) (out []string) {
	for _, word := range words {
		if word != "" {
			out = append(out, word)
		}
	}
	return out
}

// setNetworks and setPorts read what a service's tasks are attached to, and its ingress ports: PUBLISHED:TARGET[/PROTOCOL].
func setNetworks(spec *swarmpb.ServiceSpec, value string) {
	spec.Task.Networks = nil
	for _, name := range filled(strings.Split(value, ",")...) {
		spec.Task.Networks = append(spec.Task.Networks, &swarmpb.NetworkAttachment{Network: name})
	}
}

func setPorts(spec *swarmpb.ServiceSpec, value string) error {
	spec.Endpoint = &swarmpb.EndpointSpec{Mode: spec.GetEndpoint().GetMode()}
	for _, text := range filled(strings.Split(value, ",")...) {
		numbers, protocol, _ := strings.Cut(text, "/")
		published, target, _ := strings.Cut(numbers, ":")
		from, err := strconv.ParseUint(published, 10, 16)
		if err != nil {
			return err
		}
		to, err := strconv.ParseUint(target, 10, 16)
		if err != nil {
			return err
		}
		kind, err := swarmpb.ParseProtocol(cmp.Or(protocol, "tcp"))
		if err != nil {
			return err
		}
		spec.Endpoint.Ports = append(spec.Endpoint.Ports, &swarmpb.PortConfig{
			Protocol: kind, TargetPort: uint32(to), PublishedPort: uint32(from), Mode: swarmpb.PublishMode_PUBLISH_MODE_INGRESS,
		})
	}
	return nil
}

func setMode(spec *swarmpb.ServiceSpec, value string) error {
	mode, ok := swarmpb.EndpointMode_value["ENDPOINT_MODE_"+strings.ToUpper(value)]
	if !ok {
		return fmt.Errorf("an endpoint mode cannot be %q", value)
	}
	if spec.Endpoint == nil {
		spec.Endpoint = &swarmpb.EndpointSpec{}
	}
	spec.Endpoint.Mode = swarmpb.EndpointMode(mode)
	return nil
}
