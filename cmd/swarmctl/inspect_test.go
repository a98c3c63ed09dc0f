package main

import (
	"strings"
	"testing"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func TestInspect_CredentialsInAnAnswer_AreNotShown(t *testing.T) {
	f := start(t, false)
	auth := &swarmpb.RegistryAuth{Server: "docker.io", Username: "ann", Password: "s3cret", IdentityToken: "t0ken"}
	for _, s := range f.control.services {
		s.Service.RegistryAuth, s.Service.PreviousRegistryAuth = auth, auth
	}
	for _, form := range []string{"", "--pretty ", "-f '{{json .}}' ", "-f '{{.RegistryAuth}}' "} {
		got := f.play("service inspect " + form + "web")
		if strings.Contains(got, "s3cret") || strings.Contains(got, "t0ken") {
			t.Errorf("%s shows credentials:\n%s", form, got)
		}
	}
}
