package coexist

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	firewalldName = "org.fedoraproject.FirewallD1"
	firewalldZone = firewalldName + ".zone"
	// trusted is firewalld's zone that accepts everything.
	trusted = "trusted"
	// busWait bounds one talk with firewalld, which takes its time while it reloads.
	busWait = 5 * time.Second
)

// firewalld looks after the firewall of that name, over D-Bus.
type firewalld struct {
	links []string
	// dial connects to firewalld; nil: it does not run here.
	dial func(ctx context.Context) (zones, error)
}

// zones is what is asked of firewalld.
type zones interface {
	// ZoneOf is empty for a link that is in no zone.
	ZoneOf(ctx context.Context, link string) (string, error)
	Move(ctx context.Context, zone, link string) error
	Remove(ctx context.Context, zone, link string) error
	Close()
}

func (*firewalld) name() string { return "firewalld" }

func (f *firewalld) open() (added int, problems []string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), busWait)
	defer cancel()
	z, err := f.dial(ctx)
	if z == nil || err != nil {
		return 0, nil, err
	}
	defer z.Close()
	for _, link := range f.links {
		zone, err := z.ZoneOf(ctx, plus(link))
		if err == nil && zone == trusted {
			continue
		}
		if err == nil {
			err = z.Move(ctx, trusted, plus(link))
		}
		if err != nil {
			problems = append(problems, fmt.Sprintf("firewalld may drop what the cluster forwards: %v; run: firewall-cmd --permanent --zone=%s --add-interface=%s && firewall-cmd --reload", err, trusted, plus(link)))
			continue
		}
		added++
	}
	return added, problems, nil
}

func (f *firewalld) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), busWait)
	defer cancel()
	z, err := f.dial(ctx)
	if z == nil || err != nil {
		return err
	}
	defer z.Close()
	var errs []error
	for _, link := range f.links {
		if zone, err := z.ZoneOf(ctx, plus(link)); err == nil && zone == trusted {
			errs = append(errs, z.Remove(ctx, trusted, plus(link)))
		}
	}
	return errors.Join(errs...)
}

// systemBus is the host's firewalld.
type systemBus struct {
	conn   *dbus.Conn
	object dbus.BusObject
}

// systemBusSocket is where D-Bus's specification puts it.
const systemBusSocket = "/run/dbus/system_bus_socket"

func dialSystemBus(ctx context.Context) (zones, error) {
	if _, err := os.Stat(systemBusSocket); err != nil {
		return nil, nil //nolint:nilerr // a host without D-Bus has no firewalld
	}
	conn, err := dbus.Connect("unix:path="+systemBusSocket, dbus.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("connect to D-Bus: %w", err)
	}
	var runs bool
	if err := conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, firewalldName).Store(&runs); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("ask D-Bus for firewalld: %w", err)
	}
	if !runs {
		_ = conn.Close()
		return nil, nil
	}
	return &systemBus{conn: conn, object: conn.Object(firewalldName, "/org/fedoraproject/FirewallD1")}, nil
}

func (b *systemBus) ZoneOf(ctx context.Context, link string) (zone string, err error) {
	err = b.object.CallWithContext(ctx, firewalldZone+".getZoneOfInterface", 0, link).Store(&zone)
	return zone, err
}

func (b *systemBus) Move(ctx context.Context, zone, link string) error {
	return b.object.CallWithContext(ctx, firewalldZone+".changeZoneOfInterface", 0, zone, link).Err
}

func (b *systemBus) Remove(ctx context.Context, zone, link string) error {
	return b.object.CallWithContext(ctx, firewalldZone+".removeInterface", 0, zone, link).Err
}

func (b *systemBus) Close() { _ = b.conn.Close() }
