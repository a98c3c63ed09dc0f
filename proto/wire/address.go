package wire

import (
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
)

// DefaultPort is the cluster port.
const DefaultPort = 2377

// CheckAddr checks host, host:port, an IPv6 address with or without brackets, and returns host:port with
// DefaultPort where none was given. The error is an Error with CodeInvalid.
func CheckAddr(addr string) (string, error) {
	return CheckAddrPort(addr, DefaultPort)
}

// CheckAddrPort is CheckAddr with another default port.
func CheckAddrPort(addr string, defaultPort int) (string, error) {
	invalid := func(why string) error {
		return Errorf(CodeInvalid, "address %q: %s; give host[:port], for example 10.0.0.1:%d", addr, why, defaultPort)
	}
	host, port := addr, strconv.Itoa(defaultPort)
	switch ip, err := netip.ParseAddr(strings.Trim(addr, "[]")); {
	case err == nil && strings.HasPrefix(addr, "[") == strings.HasSuffix(addr, "]"):
		host = ip.String()
	case strings.Contains(addr, ":"):
		h, p, err := net.SplitHostPort(addr)
		if err != nil {
			return "", invalid("it is not host:port")
		}
		host, port = h, p
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return "", invalid("the port must be a number from 1 to 65535")
	}
	if why := checkHost(host); why != "" {
		return "", invalid(why)
	}
	return net.JoinHostPort(host, strconv.FormatUint(n, 10)), nil
}

func checkHost(host string) string {
	if host == "" {
		return "the host is empty"
	}
	if len(host) > 253 {
		return "the host is longer than 253 characters"
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return ""
	}
	digits := true
	for _, c := range []byte(host) {
		switch {
		case c >= '0' && c <= '9', c == '.':
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '-', c == '_':
			digits = false
		default:
			return "the host is neither an IP address nor a name"
		}
	}
	if digits {
		return "the host is not a valid IP address"
	}
	return ""
}

// dialReason puts a failed connect into a few words.
func dialReason(err error) string {
	var dns *net.DNSError
	var timeout net.Error
	switch {
	case errors.As(err, &dns):
		return "the name cannot be resolved (" + dns.Err + ")"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.EHOSTUNREACH):
		return "no route to host"
	case errors.Is(err, syscall.ENETUNREACH):
		return "network is unreachable"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "no answer in time"
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err.Error()
	}
	return err.Error()
}

// unreachable is the error of a peer that cannot be dialed.
func unreachable(addr string, err error) error {
	return &Error{
		Code: CodeUnavailable,
		Message: "cannot reach manager at " + addr + ": " + dialReason(err) +
			"; check the address, that swarmd runs there, and that no firewall blocks the TCP port",
		cause: err,
	}
}
