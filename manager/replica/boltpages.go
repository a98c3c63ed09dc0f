package replica

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// checkPages walks the pages of a bbolt file as bbolt will, and makes sure that nothing in them points outside of
// them. bbolt trusts its pages, and walks them in a goroutine of its own when it opens a file for writing: a fault
// there ends the process. What the records hold is not looked at here.
func checkPages(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := pageWalk{file: f, size: uint64(os.Getpagesize()), seen: make(map[uint64]bool)}
	root, err := w.meta()
	if err != nil {
		return err
	}
	return w.page(root, 0, nil, nil)
}

// Layout of bbolt's file, version 2: little-endian on every platform that we build for.
const (
	boltMagic       = 0xED0CDAED
	boltVersion     = 2
	boltPageHeader  = 16 // id (8), flags (2), count (2), overflow (4)
	boltMetaSize    = 64
	boltElement     = 16 // of a branch: pos, ksize, page (8); of a leaf: flags, pos, ksize, vsize
	boltBranch      = 0x01
	boltLeaf        = 0x02
	boltBucket      = 0x01 // flag of a leaf's element
	boltBucketSize  = 16
	boltMaxDepth    = 64
	boltMaxOverflow = 1 << 18
)

type pageWalk struct {
	file *os.File
	size uint64 // of a page
	high uint64 // first page that was never used
	seen map[uint64]bool
}

// meta reads the newer of the two metas that are whole, as bbolt does.
func (w *pageWalk) meta() (root uint64, err error) {
	var newest uint64
	found := false
	for i := range uint64(2) {
		m := make([]byte, boltMetaSize)
		if _, err := w.file.ReadAt(m, int64(i*w.size+boltPageHeader)); err != nil {
			continue
		}
		sum := fnv.New64a()
		sum.Write(m[:56])
		if binary.LittleEndian.Uint32(m) != boltMagic || binary.LittleEndian.Uint32(m[4:]) != boltVersion ||
			binary.LittleEndian.Uint64(m[56:]) != sum.Sum64() || uint64(binary.LittleEndian.Uint32(m[8:])) != w.size {
			continue
		}
		if tx := binary.LittleEndian.Uint64(m[48:]); !found || tx > newest {
			found, newest = true, tx
			root, w.high = binary.LittleEndian.Uint64(m[16:]), binary.LittleEndian.Uint64(m[40:])
		}
	}
	if !found {
		return 0, errors.New("both of its meta pages are damaged")
	}
	return root, nil
}

// page checks a page, whose keys must be in order, at or after from, and before to (nil: no bound).
func (w *pageWalk) page(id uint64, depth int, from, to []byte) error {
	switch {
	case id < 2 || id >= w.high:
		return fmt.Errorf("page %d is outside of the file's pages", id)
	case w.seen[id]:
		return fmt.Errorf("page %d is used twice", id)
	case depth > boltMaxDepth:
		return fmt.Errorf("page %d is too deep", id)
	}
	w.seen[id] = true
	header := make([]byte, boltPageHeader)
	if _, err := w.file.ReadAt(header, int64(id*w.size)); err != nil {
		return fmt.Errorf("read page %d: %w", id, notEOF(err))
	}
	overflow := uint64(binary.LittleEndian.Uint32(header[12:]))
	if binary.LittleEndian.Uint64(header) != id || overflow > boltMaxOverflow || id+overflow >= w.high {
		return fmt.Errorf("page %d has a damaged header", id)
	}
	data := make([]byte, (1+overflow)*w.size)
	if _, err := w.file.ReadAt(data, int64(id*w.size)); err != nil {
		return fmt.Errorf("read page %d: %w", id, notEOF(err))
	}
	if err := w.elements(data, depth, from, to); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

// elements checks a page's elements and what they point to.
func (w *pageWalk) elements(data []byte, depth int, from, to []byte) error {
	flags, count := binary.LittleEndian.Uint16(data[8:]), uint64(binary.LittleEndian.Uint16(data[10:]))
	size := uint64(len(data))
	if flags != boltBranch && flags != boltLeaf || boltPageHeader+count*boltElement > size {
		return errors.New("its header is damaged")
	}
	if flags == boltBranch && count == 0 {
		return errors.New("it is a branch without elements")
	}
	keys := make([][]byte, count)
	for i := range count {
		at := boltPageHeader + i*boltElement
		e := data[at : at+boltElement]
		key, end := at+word(e), uint64(0)
		if flags == boltBranch {
			end = key + word(e[4:])
		} else {
			key = at + word(e[4:])
			end = key + word(e[8:])
		}
		if end > size {
			return fmt.Errorf("element %d points outside", i)
		}
		keys[i] = data[key:end]
		if order := bytes.Compare(keys[i], from); order < 0 || i > 0 && order == 0 || to != nil && bytes.Compare(keys[i], to) >= 0 {
			return fmt.Errorf("element %d is out of order", i)
		}
		from = keys[i]
	}
	for i := range count {
		e := data[boltPageHeader+i*boltElement:]
		if flags == boltLeaf {
			if err := w.value(data, e, i, depth); err != nil {
				return err
			}
			continue
		}
		before := to
		if i+1 < count {
			before = keys[i+1]
		}
		if err := w.page(binary.LittleEndian.Uint64(e[8:]), depth+1, keys[i], before); err != nil {
			return err
		}
	}
	return nil
}

// value checks where a leaf's element has its value, and the bucket that it may hold.
func (w *pageWalk) value(data, e []byte, i uint64, depth int) error {
	from := boltPageHeader + i*boltElement + word(e[4:]) + word(e[8:])
	to := from + word(e[12:])
	if to > uint64(len(data)) {
		return fmt.Errorf("the value of element %d points outside", i)
	}
	if word(e)&boltBucket != 0 {
		return w.bucket(data[from:to], depth)
	}
	return nil
}

// bucket follows a bucket's root: a page, or one that follows in place.
func (w *pageWalk) bucket(value []byte, depth int) error {
	if len(value) < boltBucketSize {
		return errors.New("a bucket is cut off")
	}
	if root := binary.LittleEndian.Uint64(value); root != 0 {
		return w.page(root, depth+1, nil, nil)
	}
	if len(value) < boltBucketSize+boltPageHeader {
		return errors.New("a bucket is cut off")
	}
	inline := value[boltBucketSize:]
	if binary.LittleEndian.Uint16(inline[8:]) != boltLeaf {
		return errors.New("a bucket's page is damaged")
	}
	return w.elements(inline, depth+1, nil, nil)
}

func word(b []byte) uint64 { return uint64(binary.LittleEndian.Uint32(b)) }

func notEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return errCut
	}
	return err
}
