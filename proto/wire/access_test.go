package wire

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func eachMethod(f func(full string, md protoreflect.MethodDescriptor)) {
	protoregistry.GlobalFiles.RangeFilesByPackage("swarm.v1", func(fd protoreflect.FileDescriptor) bool {
		for i := range fd.Services().Len() {
			sd := fd.Services().Get(i)
			for j := range sd.Methods().Len() {
				md := sd.Methods().Get(j)
				f("/"+string(sd.FullName())+"/"+string(md.Name()), md)
			}
		}
		return true
	})
}

func TestProtocol_EveryMethod_NamesItsCallers(t *testing.T) {
	n := 0
	eachMethod(func(full string, _ protoreflect.MethodDescriptor) {
		n++
		if len(AllowedCallers(full)) == 0 {
			t.Errorf("%s has no access option: name its callers in the .proto file", full)
		}
	})
	if n < 20 {
		t.Fatalf("only %d methods were found", n)
	}
}

func TestProtocol_MethodsForAnyone_AreTheTwoJoinCalls(t *testing.T) {
	open := map[string]bool{swarmpb.CA_GetRootCertificate_FullMethodName: true, swarmpb.CA_IssueCertificate_FullMethodName: true}
	eachMethod(func(full string, _ protoreflect.MethodDescriptor) {
		if got := authorize(WithPeer(context.Background(), PeerInfo{Caller: swarmpb.Caller_CALLER_ANYONE}), full) == nil; got != open[full] {
			t.Errorf("%s: open to anyone: %v", full, got)
		}
	})
}

func TestAuthorize_AllMethodsAndCallers_FollowTheOption(t *testing.T) {
	eachMethod(func(full string, md protoreflect.MethodDescriptor) {
		allowed := map[swarmpb.Caller]bool{}
		for _, c := range callersOf(md) {
			allowed[c] = true
		}
		for n := range swarmpb.Caller_name {
			caller := swarmpb.Caller(n)
			err := authorize(WithPeer(context.Background(), PeerInfo{Caller: caller, NodeID: "n1"}), full)
			if (err == nil) != allowed[caller] {
				t.Errorf("%s by %v: %v", full, caller, err)
			}
			if err != nil && CodeOf(err) != CodePermissionDenied && CodeOf(err) != CodeUnauthenticated {
				t.Errorf("%s by %v: code %v", full, caller, CodeOf(err))
			}
		}
		if CodeOf(authorize(context.Background(), full)) != CodeUnauthenticated {
			t.Errorf("%s is open to a call without a peer", full)
		}
	})
	manager := WithPeer(context.Background(), PeerInfo{Caller: swarmpb.Caller_CALLER_MANAGER})
	for _, unknown := range []string{"", "/", "/swarm.v1.CA/Nothing", "/no.Such/Method", "/swarm.v1.Node/x", "swarm.v1.CA"} {
		if CodeOf(authorize(manager, unknown)) != CodePermissionDenied {
			t.Errorf("method %q is open", unknown)
		}
	}
}

func TestCheckAccess_ServiceWithoutRules_IsRefused(t *testing.T) {
	server := NewServer(ServerConfig{})
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "other.Service", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Do"}}, Streams: []grpc.StreamDesc{{StreamName: "Flow"}},
	}, struct{}{})
	err := CheckAccess(server)
	if err == nil || !strings.Contains(err.Error(), "/other.Service/Do") || !strings.Contains(err.Error(), "/other.Service/Flow") {
		t.Errorf("got %v", err)
	}
}
