package containerd_test

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"

	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/containerd"
)

// pullLayers are the MB of files in each layer of the image that is pulled: 140 in all, the largest first, as of a base
// system, a language, dependencies and a program.
var pullLayers = []int{50, 35, 25, 15, 10, 5}

// BenchmarkPull pulls and unpacks an image of 140 MB in 6 layers from a registry on the loopback, in turns with what a
// shell does with the same layers of the same registry, one after the other into an empty directory of the same file
// system: curl -sf URL | tar -xz. Each round begins without the image and with nothing left to be written to the disk.
// It reports the medians, and the median and the worst of the ratios within a round.
func BenchmarkPull(b *testing.B) {
	requireRoot(b)
	for _, tool := range []string{"curl", "tar", "gzip"} {
		if _, err := exec.LookPath(tool); err != nil {
			b.Skipf("no %s on this host", tool)
		}
	}
	usage := accountCPU(b)
	child := shared.open(b)
	host := emptyRegistry(b)
	config := configure(b, child)
	config.InsecureRegistries = []string{host}
	r, _ := open(b, config)
	ref := host + "/bench/pull:v1"
	urls := pushPullImage(b, ref)
	c, err := client.New(config.Address, client.WithDefaultNamespace(containerd.Namespace))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()

	var pulls, shells spent
	for range b.N {
		pulls.add(usage, func() { pullOnce(b, r, ref) })
		dropImages(b, c)
		dir := filepath.Join(shared.root, "shell") // beside containerd's own directory
		shells.add(usage, func() { fetchOnce(b, dir, urls) })
		if err := os.RemoveAll(dir); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(0, "ns/op")
	pulls.report(b, "pull")
	shells.report(b, "shell")
	times, cpus := ratios(pulls.time, shells.time), ratios(pulls.cpu, shells.cpu)
	b.ReportMetric(median(times), "time-ratio")
	b.ReportMetric(slices.Max(times), "time-ratio-worst")
	b.ReportMetric(median(cpus), "cpu-ratio")
}

// spent is what rounds of one side have cost; CPU is that of everything, the registry too.
type spent struct{ time, cpu []time.Duration }

func (s *spent) add(usage func() time.Duration, do func()) {
	unix.Sync()
	before, begin := usage(), time.Now()
	do()
	s.time, s.cpu = append(s.time, time.Since(begin)), append(s.cpu, usage()-before)
}

func (s *spent) report(b *testing.B, what string) {
	b.ReportMetric(median(s.time).Seconds(), what+"-s")
	b.ReportMetric(slices.Max(s.time).Seconds(), what+"-s-worst")
	b.ReportMetric(median(s.cpu).Seconds(), what+"-cpu-s")
}

func median[T cmp.Ordered](all []T) T { return slices.Sorted(slices.Values(all))[len(all)/2] }

// ratios of each round's two sides.
func ratios(of, to []time.Duration) []float64 {
	out := make([]float64, len(of))
	for i := range of {
		out[i] = of[i].Seconds() / to[i].Seconds()
	}
	return out
}

func pullOnce(b *testing.B, r *containerd.Runtime, ref string) {
	if _, err := r.Pull(context.Background(), runtime.PullRequest{Image: ref}); err != nil {
		b.Fatal(err)
	}
}

func fetchOnce(b *testing.B, dir string, urls []string) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		b.Fatal(err)
	}
	for _, url := range urls {
		cmd := exec.Command("sh", "-c", `curl -sf "$1" | tar -xz -C "$2"`, "sh", url, dir)
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("curl | tar: %v\n%s", err, out)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != len(urls) {
		b.Fatalf("%d directories of %d layers: %v", len(entries), len(urls), err)
	}
}

// dropImages removes all images and waits until what they held is gone.
func dropImages(b *testing.B, c *client.Client) {
	ctx := namespaces.WithNamespace(context.Background(), containerd.Namespace)
	all, err := c.ImageService().List(ctx)
	if err != nil {
		b.Fatal(err)
	}
	for _, image := range all {
		if err := c.ImageService().Delete(ctx, image.Name, images.SynchronousDelete()); err != nil {
			b.Fatal(err)
		}
	}
}

// pushPullImage gives the addresses of the layers it has pushed.
func pushPullImage(b *testing.B, ref string) (urls []string) {
	b.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	image := empty.Image
	for i, size := range pullLayers {
		body := layerBody(b, random, i, size)
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }, tarball.WithCompressedCaching)
		if err != nil {
			b.Fatal(err)
		}
		if image, err = mutate.AppendLayers(image, layer); err != nil {
			b.Fatal(err)
		}
	}
	config, err := image.ConfigFile()
	if err != nil {
		b.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", goruntime.GOARCH
	if image, err = mutate.ConfigFile(image, config); err != nil {
		b.Fatal(err)
	}
	tag, err := name.NewTag(ref, name.Insecure)
	if err != nil {
		b.Fatal(err)
	}
	if err := remote.Write(tag, image); err != nil {
		b.Fatal(err)
	}
	manifest, err := image.Manifest()
	if err != nil {
		b.Fatal(err)
	}
	var compressed int64
	for _, layer := range manifest.Layers {
		compressed += layer.Size
		urls = append(urls, fmt.Sprintf("http://%s/v2/%s/blobs/%s", tag.RegistryStr(), tag.RepositoryStr(), layer.Digest))
	}
	b.Logf("%d layers, %.0f MB compressed", len(urls), float64(compressed)/1e6)
	checkServed(b, urls[0], manifest.Layers[0])
	return urls
}

func checkServed(b *testing.B, url string, layer v1.Descriptor) {
	res, err := http.Head(url)
	if err != nil {
		b.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK || res.ContentLength != layer.Size {
		b.Fatalf("%s: %s, %d bytes", url, res.Status, res.ContentLength)
	}
}

// layerBody is a tar of so many MB of files: half the bytes are text that compresses to about a third, in files of 2 to 34
// KB as of scripts and modules, half are programs and archives of 0.2 to 3 MB, of which every other 4 KB do not compress.
func layerBody(b *testing.B, random *rand.Rand, n, mb int) []byte {
	b.Helper()
	words := make([]string, 4000)
	for i := range words {
		letters := make([]byte, 2+random.IntN(9))
		for k := range letters {
			letters[k] = byte('a' + random.IntN(26))
		}
		words[i] = string(letters)
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	add := func(path string, mode int64, body []byte) {
		header := tar.Header{Typeflag: tar.TypeReg, Name: path, Mode: mode, Size: int64(len(body))}
		if strings.HasSuffix(path, "/") {
			header.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(&header); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			b.Fatal(err)
		}
	}
	root := fmt.Sprintf("layer%d/", n)
	for _, dir := range []string{root, root + "text/", root + "bin/"} {
		add(dir, 0o755, nil)
	}
	for i, left := 0, mb*500_000; left > 0; i++ {
		body := textOf(random, words, min(left, 2000+random.IntN(32000)))
		left -= len(body)
		if i%50 == 0 {
			add(fmt.Sprintf("%stext/%03d/", root, i/50), 0o755, nil)
		}
		add(fmt.Sprintf("%stext/%03d/%04d", root, i/50, i), 0o644, body)
	}
	for i, left := 0, mb*500_000; left > 0; i++ {
		body := programOf(random, words, min(left, 200_000+random.IntN(2_800_000)))
		left -= len(body)
		add(fmt.Sprintf("%sbin/%03d", root, i), 0o755, body)
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	return out.Bytes()
}

func textOf(random *rand.Rand, words []string, size int) []byte {
	out := make([]byte, 0, size+16)
	for len(out) < size {
		out = append(out, words[int(float64(len(words))*random.Float64()*random.Float64())]...)
		out = append(out, " \n"[min(1, random.IntN(12)/11)])
	}
	return out[:size]
}

func programOf(random *rand.Rand, words []string, size int) []byte {
	out := make([]byte, 0, size+4096)
	for len(out) < size {
		for range 512 {
			v := random.Uint64()
			out = append(out, byte(v), byte(v>>8), byte(v>>16), byte(v>>24), byte(v>>32), byte(v>>40), byte(v>>48), byte(v>>56))
		}
		out = append(out, textOf(random, words, 4096)...)
	}
	return out[:size]
}
