package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/distribution/reference"

	"github.com/swarmd/swarmd/worker/runtime"
)

// Images that nothing uses go when the disk fills, the longest unused first. What was loaded by hand stays: no registry
// may have it.
const (
	// imagesEvery is how often the disk is looked at, imagesHigh the part of it, in percent, from which on images go, and
	// imagesLow the part at which that is enough.
	imagesEvery = time.Minute
	imagesHigh  = 85
	imagesLow   = 80
	// imagesRest is how long an image stays after it was pulled or last used, imagesRestFull how long while the disk is so
	// full that the node takes no tasks.
	imagesRest     = 10 * time.Minute
	imagesRestFull = time.Minute
)

// boundImages makes room among the images when there is need, until ctx ends: it looks now and then, and at once when the
// disk is full.
func (f *fleet) boundImages(ctx context.Context, disk *space) error {
	tick := time.NewTicker(imagesEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-disk.full:
		}
		rest := imagesRest
		if disk.takesNone() != "" {
			rest = imagesRestFull
		}
		if err := f.trimImages(ctx, rest); err != nil && ctx.Err() == nil {
			f.log.Warn("cannot make room among the images", "error", err)
		}
	}
}

func (f *fleet) trimImages(ctx context.Context, rest time.Duration) error {
	if used, err := f.diskUsed(); err != nil || used < imagesHigh {
		return err
	}
	call, cancel := context.WithTimeout(ctx, runtimeCall)
	defer cancel()
	images, err := f.runtime.Images(call)
	if err != nil {
		return err
	}
	var failed error // one image that cannot go is not in the way of the others
	for _, image := range f.unusedImages(images, rest) {
		used, err := f.diskUsed()
		if err != nil || used <= imagesLow || call.Err() != nil {
			return errors.Join(failed, err)
		}
		if len(f.unusedImages([]runtime.Image{image}, rest)) == 0 {
			continue // a task has come for it meanwhile
		}
		removed, err := f.runtime.RemoveImage(call, image.Name, false)
		switch {
		case errors.Is(err, runtime.ErrInUse) || errors.Is(err, runtime.ErrNotFound):
		case err != nil:
			failed = errors.Join(failed, err)
		default:
			f.log.Info("the disk is nearly full: an image that nothing uses was removed", "image", image.Name, "names", removed, "bytes", image.Size)
		}
	}
	return failed
}

// diskUsed is how much of the disk is not free, in percent.
func (f *fleet) diskUsed() (uint64, error) {
	look := f.cfg.Disk
	if look == nil {
		look = statDisk
	}
	d, err := look(f.cfg.Dir)
	if err != nil {
		return 0, err
	}
	if d.Size == 0 || d.Free > d.Size {
		return 0, fmt.Errorf("the disk of %s has %d bytes, of which %d are free", f.cfg.Dir, d.Size, d.Free)
	}
	return 100 - d.Free*100/d.Size, nil
}

// unusedImages are those that have not been used for the time of rest and may go, the longest unused first.
func (f *fleet) unusedImages(images []runtime.Image, rest time.Duration) []runtime.Image {
	type candidate struct {
		image runtime.Image
		last  time.Time // that it was pulled or used
	}
	now := time.Now()
	f.mu.Lock()
	inUse, last := f.imageUse()
	f.mu.Unlock()
	var found []candidate
	for _, image := range images {
		if image.Loaded || inUse[image.Digest] || inUse[image.Name] {
			continue
		}
		c := candidate{image, image.CreatedAt}
		if at := last[image.Digest]; at.After(c.last) {
			c.last = at
		}
		if now.Sub(c.last) >= rest {
			found = append(found, c)
		}
	}
	slices.SortFunc(found, func(a, b candidate) int {
		return cmp.Or(a.last.Compare(b.last), cmp.Compare(a.image.Name, b.image.Name))
	})
	out := make([]runtime.Image, len(found))
	for i, c := range found {
		out[i] = c.image
	}
	return out
}

// imageUse says, by digests and names, what is used or is to be, and by digests when the rest last was, as far as the
// node remembers its tasks. f.mu is held.
func (f *fleet) imageUse() (inUse map[string]bool, last map[string]time.Time) {
	inUse, last = map[string]bool{}, map[string]time.Time{}
	for _, template := range f.templates {
		container := template.GetSpec().GetContainer()
		inUse[container.GetImageDigest()] = true
		if ref, err := reference.ParseDockerRef(container.GetImage()); err == nil {
			inUse[ref.String()] = true
		}
	}
	for _, t := range f.tasks {
		digest := t.status.GetContainer().GetImageDigest()
		if !t.status.GetState().Ended() || !t.cleaned {
			inUse[digest] = true
		}
		if at := time.Unix(0, t.status.GetAt()); at.After(last[digest]) {
			last[digest] = at
		}
	}
	return inUse, last
}
