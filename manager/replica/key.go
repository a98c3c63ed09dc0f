package replica

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// KeySize is the size of a manager's data key in bytes.
const KeySize = 32

const keyFile = "data.key"

// LoadOrCreateKey returns the data key kept in dir (data.key, mode 0600), made on first use. A key that is there is
// never replaced: what it sealed could not be read again.
func LoadOrCreateKey(dir string) ([]byte, error) {
	path := filepath.Join(dir, keyFile)
	key, err := os.ReadFile(path)
	switch {
	case err == nil && len(key) != KeySize:
		return nil, fmt.Errorf("read data key %s: it has %d bytes, not %d; restore it from a backup, or remove this manager's data and join again", path, len(key), KeySize)
	case err == nil:
		return key, nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("read data key: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create data key: %w", err)
	}
	key = make([]byte, KeySize)
	rand.Read(key)
	if err := writeFileAtomic(path, key); err != nil {
		return nil, fmt.Errorf("create data key: %w", err)
	}
	return key, nil
}

// writeFileAtomic leaves at path either what was there or all of data, synced.
func writeFileAtomic(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".tmp-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes renames in dir survive a loss of power.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
