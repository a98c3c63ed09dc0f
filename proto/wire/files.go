package wire

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// identityFile holds key, chain and root in one file, so that no crash leaves parts of two identities.
const identityFile = "identity.pem"

// maxIdentityFile bounds what LoadIdentity reads.
const maxIdentityFile = 1 << 20

// SaveIdentity writes an identity below dir, which it makes (0700). It is on disk, whole, when it returns.
func SaveIdentity(dir string, id Identity) error {
	key := id.Key()
	if key == nil {
		return fmt.Errorf("save identity: node %s has no private key", id.NodeID)
	}
	text, err := encodeKey(key)
	if err != nil {
		return fmt.Errorf("save identity: %w", err)
	}
	for _, der := range id.TLS.Certificate {
		text = append(text, encodeCert(der)...)
	}
	text = append(text, id.RootPEM...)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("save identity: %w", err)
	}
	if err := WriteFile(filepath.Join(dir, identityFile), text, 0o600); err != nil {
		return fmt.Errorf("save identity: %w", err)
	}
	if err := syncDir(filepath.Dir(dir)); err != nil { // dir itself may be new
		return fmt.Errorf("save identity: %w", err)
	}
	return nil
}

// LoadIdentity reads what SaveIdentity wrote. The error is fs.ErrNotExist when the node has none. An expired
// identity loads: it is the proof for a new one.
func LoadIdentity(dir string) (Identity, error) {
	path := filepath.Join(dir, identityFile)
	f, err := os.Open(path)
	if err != nil {
		return Identity{}, fmt.Errorf("load identity: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxIdentityFile+1))
	if err != nil {
		return Identity{}, fmt.Errorf("load identity: %w", err)
	}
	id, err := parseIdentity(text)
	if err != nil {
		return Identity{}, fmt.Errorf("load identity: %s is damaged: %w; restore it from a backup, or remove it and join again", path, err)
	}
	return id, nil
}

// parseIdentity tells the root from the chain by its being signed by itself.
func parseIdentity(text []byte) (Identity, error) {
	if len(text) > maxIdentityFile {
		return Identity{}, errors.New("it is too large")
	}
	var key, chain, root []byte
	rest := bytes.TrimSpace(text)
	for len(rest) > 0 {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			return Identity{}, errors.New("it is not PEM throughout")
		}
		rest = bytes.TrimSpace(rest)
		encoded := pem.EncodeToMemory(block)
		switch block.Type {
		case "PRIVATE KEY":
			if key != nil {
				return Identity{}, errors.New("it has two private keys")
			}
			key = encoded
		case "CERTIFICATE":
			c, err := x509.ParseCertificate(block.Bytes)
			switch {
			case err != nil:
				return Identity{}, fmt.Errorf("parse certificate: %w", err)
			case c.IsCA && bytes.Equal(c.RawSubject, c.RawIssuer):
				root = append(root, encoded...)
			default:
				chain = append(chain, encoded...)
			}
		default:
			return Identity{}, fmt.Errorf("it has an unknown part %q", block.Type)
		}
	}
	if key == nil || chain == nil || root == nil {
		return Identity{}, errors.New("a private key, a certificate and a root must be in it")
	}
	return NewIdentity(chain, key, root)
}

// WriteFile replaces a file at once: after a crash it has its old content or the new, never a part. Both the
// content and the name are on disk when it returns.
func WriteFile(path string, data []byte, mode fs.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if err = f.Chmod(mode); err != nil {
		return err
	}
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
