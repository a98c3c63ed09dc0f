package node_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/partial"

	"github.com/swarmd/swarmd/e2e/image"
)

const registryHost = "10.77.0.254:5000"

func TestInput_ThatIsWrong_RefusedWithWhatToDo(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	c.create(t, "web", 1)
	for name, test := range map[string]struct {
		args  []string
		words []string
	}{
		"name taken":          {[]string{"--name", "web", "whoami:v1"}, []string{"web"}},
		"name invalid":        {[]string{"--name", "-web-", "whoami:v1"}, []string{`"-web-"`, "letters"}},
		"replicas -1":         {[]string{"--replicas", "-1", "whoami:v1"}, []string{"replicas", "-1"}},
		"port not a number":   {[]string{"-p", "mode=host,published=http,target=80", "whoami:v1"}, []string{"http"}},
		"port too high":       {[]string{"-p", "mode=host,published=70000,target=80", "whoami:v1"}, []string{"70000"}},
		"port of the cluster": {[]string{"-p", "2377:80", "whoami:v1"}, []string{"2377", "choose another port"}},
		"mount without type":  {[]string{"--mount", "type=disk,target=/x", "whoami:v1"}, []string{"disk", "bind"}},
		"mount not absolute":  {[]string{"--mount", "type=bind,source=here,target=/x", "whoami:v1"}, []string{"here", "absolute"}},
		"image not a name":    {[]string{"Who Ami"}, []string{"Who Ami"}},
		"no image":            {nil, []string{"image"}},
		"memory not a size":   {[]string{"--limit-memory", "much", "whoami:v1"}, []string{"much", "200m"}},
		"unknown flag":        {[]string{"--replica", "3", "whoami:v1"}, []string{"--replica"}},
		"unknown template":    {[]string{"-e", "A={{.Nothing}}", "whoami:v1"}, []string{".Nothing", ".Task.Slot"}},
		"missing bind source": {[]string{"--mount", "type=bind,source=/nowhere,target=/x", "whoami:v1"}, []string{"/nowhere"}},
		"command not there":   {[]string{"--entrypoint", "/no/such/program", "whoami:v1"}, []string{"/no/such/program"}},
	} {
		t.Run(name, func(t *testing.T) {
			c.refused(t, 1, test.words, append([]string{"service", "create"}, test.args...)...)
		})
	}
	t.Run("image that is not here and no registry that answers", func(t *testing.T) {
		c.refused(t, 1, []string{"image whoami:v9: ", "the cluster goes on trying", "service ps"}, "service", "create", "--name", "away", "whoami:v9")
		if out := c.ok(t, 1, "service", "ps", "--no-trunc", "away"); !strings.Contains(out, "image whoami:v9: ") {
			t.Error("service ps does not say why:\n" + out)
		}
		c.remove(t, "away")
	})
	for _, test := range []struct {
		args  []string
		words []string
	}{
		{[]string{"service", "scale", "web=-1"}, []string{"web=-1"}},
		{[]string{"service", "scale", "nobody=1"}, []string{"nobody"}},
		{[]string{"service", "rm", "nobody"}, []string{"nobody"}},
		{[]string{"service", "inspect", "nobody"}, []string{"nobody"}},
		{[]string{"task", "inspect", "nobody"}, []string{"nobody"}},
		{[]string{"servic", "ls"}, []string{"servic"}},
		{[]string{"image", "load", "/nowhere.tar"}, []string{"/nowhere.tar"}},
		{[]string{"image", "load", "/etc/hostname"}, []string{"archive"}},
		{[]string{"init", "--advertise-addr", "nowhere"}, nil},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) { c.refused(t, 1, test.words, test.args...) })
	}
}

func TestImages_FromARegistry(t *testing.T) {
	t.Parallel()
	c := newHosts(t, 1, "--insecure-registry", registryHost)
	digest := c.registry(t)
	c.ok(t, 1, "init", "--no-rebalance", "--advertise-addr", c.addr(1))
	c.nodesReady(t, 1)
	for i, path := range []string{"/demo/whoami:v1", "/demo/whoami@" + digest, "/demo/whoami:v1@" + digest} {
		service := fmt.Sprintf("pulled-%d", i)
		c.ok(t, 1, "service", "create", "--name", service, "--update-monitor", "500ms", registryHost+path)
		c.runningAre(t, service, 1)
	}
	c.refused(t, 1, []string{registryHost, "image not found"}, "service", "create", "--name", "no-tag", registryHost+"/demo/whoami:v9")
	c.refused(t, 1, []string{registryHost, "image not found"}, "service", "create", "--name", "no-repository", registryHost+"/demo/nobody:v1")
	for _, service := range []string{"no-tag", "no-repository"} {
		for _, x := range c.tasks(t, service) {
			if (x.State == "failed" || x.State == "rejected") && !strings.Contains(x.Error, "image not found") {
				t.Errorf("a task of %s ended with the error %q", service, x.Error)
			}
		}
	}
}

// registry serves whoami:v1 on the switch, by plain HTTP, as demo/whoami:v1.
func (c *cluster) registry(t *testing.T) (digest string) {
	t.Helper()
	l, err := c.lab.Listen("tcp", registryHost)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close(); <-served })
	img, err := image.Build(image.Whoami(artifact(t, "build/whoami"), "v1"))
	if err != nil {
		t.Fatal(err)
	}
	push := func(err error, method, path, mediaType string, body io.Reader) {
		t.Helper()
		req, err2 := http.NewRequest(method, "http://"+registryHost+"/v2/demo/whoami/"+path, body)
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", mediaType)
		r, err := (&http.Client{Transport: &http.Transport{DialContext: c.lab.Dial, DisableKeepAlives: true}}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = r.Body.Close()
		if r.StatusCode != http.StatusCreated {
			t.Fatalf("push %s: %s", path, r.Status)
		}
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	config, err := partial.ConfigLayer(img)
	if err != nil {
		t.Fatal(err)
	}
	for _, layer := range append(layers, config) {
		d, err1 := layer.Digest()
		blob, err2 := layer.Compressed()
		push(errors.Join(err1, err2), http.MethodPost, "blobs/uploads/?digest="+d.String(), "application/octet-stream", blob)
	}
	manifest, err1 := img.RawManifest()
	mediaType, err2 := img.MediaType()
	d, err3 := img.Digest()
	push(errors.Join(err1, err2, err3), http.MethodPut, "manifests/v1", string(mediaType), bytes.NewReader(manifest))
	return d.String()
}

func TestHost_ThatCannot(t *testing.T) {
	t.Parallel()
	c := newBareHosts(t, 2)
	h := c.host(1)
	swarmd := artifact(t, "bin/swarmd")
	run := func(t *testing.T, words []string, argv ...string) {
		t.Helper()
		out, code, err := h.Run(append([]string{"/usr/bin/timeout", "60"}, argv...)...)
		t.Log(out)
		if err != nil || code != 1 {
			t.Errorf("%v: exit %d %v, want 1", argv, code, err)
		}
		wantWords(t, out, words...)
	}
	t.Run("withoutRunc_SwarmdSaysSo", func(t *testing.T) {
		run(t, []string{"runc", "--oci-runtime"}, "/usr/bin/env", "-i", "PATH=/nowhere", swarmd)
	})
	t.Run("unknownFlagOfSwarmd_Refused", func(t *testing.T) { run(t, []string{"--date-dir"}, swarmd, "--date-dir", "/x") })
	t.Run("relativeDataDir_Refused", func(t *testing.T) { run(t, []string{"--data-dir", "absolute"}, swarmd, "--data-dir", "x") })
	c.start(h)
	t.Run("secondSwarmdOnTheSameDirectory_Refused", func(t *testing.T) {
		run(t, []string{"/var/lib/swarmd", "another swarmd", "--data-dir"}, swarmd, "--run-dir", "/run/other")
		run(t, []string{"/run/swarmd"}, swarmd, "--data-dir", "/run/otherdata")
	})
	t.Run("portTaken_InitSaysSo_AndWorksOnceItIsFree", func(t *testing.T) {
		var l net.Listener
		if err := h.Inside(func() (err error) { l, err = net.Listen("tcp", "0.0.0.0:"+port); return err }); err != nil {
			t.Fatal(err)
		}
		c.refused(t, 1, []string{port, "taken by another process", "--listen-addr"}, "init", "--advertise-addr", c.addr(1))
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		c.ok(t, 1, "init", "--no-rebalance", "--advertise-addr", c.addr(1))
	})
	t.Run("fullDisk_InitSaysSo_AndWorksOnceThereIsRoom", func(t *testing.T) {
		full := c.host(2)
		sh := func(command string) {
			t.Helper()
			if out, code, err := full.Run("/bin/sh", "-c", command); err != nil || code != 0 {
				t.Fatalf("%s: %s %d %v", command, out, code, err)
			}
		}
		sh("mount -t tmpfs -o size=32m none /var/lib/swarmd")
		c.start(full)
		c.ok(t, 2, "image", "ls") // containerd has made what it needs
		sh("cat /dev/zero > /var/lib/swarmd/filler 2>/dev/null; true")
		c.refused(t, 2, []string{"no space", "/var/lib/swarmd"}, "init", "--advertise-addr", c.addr(2))
		if got := c.membership(t, 2); got != "none" {
			t.Errorf("after a failed init the host is %q", got)
		}
		sh("rm /var/lib/swarmd/filler")
		c.ok(t, 2, "init", "--advertise-addr", c.addr(2))
	})
}
