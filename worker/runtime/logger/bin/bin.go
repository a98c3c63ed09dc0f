// Package bin holds the built logger for this architecture and puts it on disk.
package bin

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Extract writes the logger into dir, under a name with its content's hash, and returns its path: an upgrade
// adds a file and never changes one that a running container uses.
func Extract(dir string) (string, error) {
	reader, err := gzip.NewReader(bytes.NewReader(compressed))
	if err != nil {
		return "", fmt.Errorf("read embedded logger: %w", err)
	}
	body, err := io.ReadAll(reader)
	if err != nil {
		return "", fmt.Errorf("read embedded logger: %w", err)
	}
	path := filepath.Join(dir, fmt.Sprintf("logger-%x", sha256.Sum256(body))[:len("logger-")+16])
	if there, err := os.ReadFile(path); err == nil && bytes.Equal(there, body) {
		return path, os.Chmod(path, 0o755)
	}
	return path, write(path, body)
}

func write(path string, body []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("extract logger: %w", err)
	}
	temp, err := os.CreateTemp(filepath.Dir(path), ".logger-")
	if err != nil {
		return fmt.Errorf("extract logger: %w", err)
	}
	defer os.Remove(temp.Name())
	_, err = temp.Write(body)
	for _, step := range []func() error{func() error { return temp.Chmod(0o755) }, temp.Sync, temp.Close, func() error { return os.Rename(temp.Name(), path) }} {
		if err == nil {
			err = step()
		}
	}
	if err != nil {
		return fmt.Errorf("extract logger: %w", err)
	}
	return nil
}
