// Command mkimage writes the demo image as an OCI archive:
//
//	mkimage -binary build/whoami -o build/whoami.tar whoami:v1 whoami:v2
//
// Each reference becomes an image that says its tag as its version.
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/swarmd/swarmd/e2e/image"
)

func main() {
	binary := flag.String("binary", "", "static whoami binary")
	out := flag.String("o", "", "archive to write")
	flag.Parse()
	if err := run(*binary, *out, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

func run(binary, out string, refs []string) error {
	if binary == "" || out == "" || len(refs) == 0 {
		return fmt.Errorf("want -binary FILE -o FILE and at least one NAME:TAG")
	}
	images := map[string]v1.Image{}
	for _, ref := range refs {
		_, tag, ok := strings.Cut(ref, ":")
		if !ok {
			return fmt.Errorf("%s: want NAME:TAG", ref)
		}
		img, err := image.Build(image.Whoami(binary, tag))
		if err != nil {
			return err
		}
		images["docker.io/library/"+ref] = img
	}
	return image.WriteArchive(out, images)
}
