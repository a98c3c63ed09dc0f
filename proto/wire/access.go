package wire

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// AllowedCallers returns who may call a method, named /package.Service/Method, by its access option. It is
// empty for a method that is unknown or has no rule: nobody may call it.
func AllowedCallers(fullMethod string) []swarmpb.Caller {
	service, method, ok := strings.Cut(strings.TrimPrefix(fullMethod, "/"), "/")
	if !ok {
		return nil
	}
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		return nil
	}
	sd, ok := d.(protoreflect.ServiceDescriptor)
	if !ok {
		return nil
	}
	md := sd.Methods().ByName(protoreflect.Name(method))
	if md == nil {
		return nil
	}
	return callersOf(md)
}

func callersOf(md protoreflect.MethodDescriptor) []swarmpb.Caller {
	opts, ok := md.Options().(*descriptorpb.MethodOptions)
	if !ok || opts == nil {
		return nil
	}
	access, ok := proto.GetExtension(opts, swarmpb.E_Access).(*swarmpb.Access)
	if !ok {
		return nil
	}
	allow := slices.Clone(access.GetAllow())
	return slices.DeleteFunc(allow, func(c swarmpb.Caller) bool { return c == swarmpb.Caller_CALLER_UNSPECIFIED })
}

// CheckAccess refuses a server with a method that no rule lets anybody call.
func CheckAccess(s *grpc.Server) error {
	var missing []error
	services := s.GetServiceInfo()
	for name, info := range services {
		for _, m := range info.Methods {
			full := "/" + name + "/" + m.Name
			if len(AllowedCallers(full)) == 0 {
				missing = append(missing, fmt.Errorf("method %s has no access option: name its callers in the .proto file", full))
			}
		}
	}
	slices.SortFunc(missing, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(missing...)
}

// authorize is the deny-by-default check before every handler.
func authorize(ctx context.Context, fullMethod string) error {
	p, ok := Peer(ctx)
	if !ok {
		return Errorf(CodeUnauthenticated, "call %s: the connection has no proven peer", fullMethod)
	}
	allowed := AllowedCallers(fullMethod)
	if slices.Contains(allowed, p.Caller) {
		return nil
	}
	if p.Caller == swarmpb.Caller_CALLER_ANYONE {
		return Errorf(CodeUnauthenticated, "call %s: it needs a node's certificate; join the cluster first", fullMethod)
	}
	return Errorf(CodePermissionDenied, "call %s: %s may not use it", fullMethod, callerText(p))
}

func callerText(p PeerInfo) string {
	switch p.Caller {
	case swarmpb.Caller_CALLER_WORKER:
		return "worker " + p.NodeID
	case swarmpb.Caller_CALLER_MANAGER:
		return "manager " + p.NodeID
	case swarmpb.Caller_CALLER_LOCAL:
		return "the local administrator"
	}
	return "an unknown caller"
}
