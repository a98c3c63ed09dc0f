package wireguard

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// key is a private or a public one.
type key [KeyLength]byte

func (k key) public() key { return key(wgtypes.Key(k).PublicKey()) }

func (c Config) keyFile() string { return filepath.Join(c.Dir, "wireguard.key") }

// loadKey reads the node's key, or makes it. A file that holds none is replaced: a new key is all that could help.
func loadKey(cfg Config) (key, error) {
	text, err := os.ReadFile(cfg.keyFile())
	if errors.Is(err, fs.ErrNotExist) {
		return newKey(cfg)
	}
	if err != nil {
		return key{}, fmt.Errorf("read the node's key: %w", err)
	}
	bytes, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(bytes) != KeyLength {
		cfg.Logger.Warn("the file of the tunnel's key is damaged; making a new key", "file", cfg.keyFile())
		return newKey(cfg)
	}
	if err := os.Chmod(cfg.keyFile(), 0o600); err != nil {
		return key{}, fmt.Errorf("protect the node's key: %w", err)
	}
	return key(bytes), nil
}

// newKey makes a key and keeps it: it is on disk when newKey returns.
func newKey(cfg Config) (key, error) {
	private, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return key{}, fmt.Errorf("make a key: %w", err)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return key{}, fmt.Errorf("keep the node's key: %w", err)
	}
	f, err := os.CreateTemp(cfg.Dir, ".wireguard.key-*") // 0600
	if err != nil {
		return key{}, fmt.Errorf("keep the node's key: %w", err)
	}
	_, err = f.WriteString(private.String() + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), cfg.keyFile())
	}
	if err != nil {
		return key{}, fmt.Errorf("keep the node's key: %w", errors.Join(err, os.Remove(f.Name())))
	}
	dir, err := os.Open(cfg.Dir)
	if err != nil {
		return key{}, fmt.Errorf("keep the node's key: %w", err)
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return key{}, fmt.Errorf("keep the node's key: %w", err)
	}
	return key(private), nil
}

func removeKey(cfg Config) error {
	if err := os.Remove(cfg.keyFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the node's key: %w", err)
	}
	return nil
}
