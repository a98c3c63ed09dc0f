// Command generate builds the logger for each architecture into ../bin, compressed, and records a hash of the
// sources beside it. With -check it builds nothing and compares that hash: another toolchain's output may
// differ, the sources may not.
package main

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

var architectures = []string{"amd64", "arm64"}

func main() {
	dir := flag.String("dir", ".", "directory of the logger's sources")
	check := flag.Bool("check", false, "compare the recorded hash of the sources instead of building")
	flag.Parse()
	if err := run(*dir, *check); err != nil {
		fmt.Fprintln(os.Stderr, "generate logger:", err)
		os.Exit(1)
	}
}

func run(dir string, check bool) error {
	sum, err := sourcesHash(dir)
	if err != nil {
		return err
	}
	record := filepath.Join(dir, "bin", "sources.sha256")
	if check {
		recorded, err := os.ReadFile(record)
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(recorded)) != sum {
			return fmt.Errorf("%s was built from other sources; run go generate ./worker/runtime/logger", filepath.Dir(record))
		}
		return nil
	}
	for _, arch := range architectures {
		if err := build(dir, arch); err != nil {
			return fmt.Errorf("build for %s: %w", arch, err)
		}
	}
	return os.WriteFile(record, []byte(sum+"\n"), 0o644)
}

// sourcesHash is of the names and contents of the command's Go files, its tests left out.
func sourcesHash(dir string) (string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return "", err
	}
	hash := sha256.New()
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		body, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(hash, "%s %d\n", filepath.Base(file), len(body))
		hash.Write(body)
	}
	return fmt.Sprintf("%x", hash.Sum(nil)), nil
}

func build(dir, arch string) error {
	temp, err := os.MkdirTemp("", "logger-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	binary := filepath.Join(temp, "logger")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid=", "-o", binary, ".")
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOFLAGS=")
	if err := cmd.Run(); err != nil {
		return err
	}
	body, err := os.ReadFile(binary)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := io.Copy(w, bytes.NewReader(body)); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "bin", "logger-"+arch+".gz"), out.Bytes(), 0o644)
}
