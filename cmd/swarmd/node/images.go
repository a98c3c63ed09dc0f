package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
	"github.com/swarmd/swarmd/worker/runtime"
)

// chunks reads a stream of LoadImageRequests as one archive.
type chunks struct {
	stream grpc.ClientStreamingServer[swarmpb.LoadImageRequest, swarmpb.LoadImageResponse]
	rest   []byte
}

func (c *chunks) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		req, err := c.stream.Recv()
		if err != nil {
			return 0, err // io.EOF at the end
		}
		c.rest = req.GetChunk()
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// LoadImage puts the images of an archive into this host's store.
func (s *localServer) LoadImage(stream grpc.ClientStreamingServer[swarmpb.LoadImageRequest, swarmpb.LoadImageResponse]) error {
	if err := s.node.containerdReady(stream.Context()); err != nil {
		return err
	}
	archive := &chunks{stream: stream}
	images, err := s.node.runtime.Import(stream.Context(), archive)
	if err != nil {
		return s.node.explain(imageError("load image", err))
	}
	// The archive's end may come before the stream's: padding is allowed.
	if _, err := io.Copy(io.Discard, archive); err != nil {
		return err
	}
	return stream.SendAndClose(&swarmpb.LoadImageResponse{Images: listed(images)})
}

// PullImage fetches an image into this host's store and tells how far it is.
func (s *localServer) PullImage(req *swarmpb.PullImageRequest, stream grpc.ServerStreamingServer[swarmpb.PullImageResponse]) error {
	ctx := stream.Context()
	if err := s.node.containerdReady(ctx); err != nil {
		return err
	}
	type outcome struct {
		image runtime.Image
		err   error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	progress, done := make(chan runtime.PullProgress, 1), make(chan outcome, 1)
	go func() {
		image, err := s.node.runtime.Pull(ctx, runtime.PullRequest{
			Image: req.GetImage(), Policy: swarmpb.PullPolicy_PULL_POLICY_ALWAYS, Auth: req.GetRegistryAuth(),
			Progress: func(p runtime.PullProgress) {
				select {
				case progress <- p:
				default: // a receiver that does not keep up is told less
				}
			},
		})
		done <- outcome{image, err}
	}()
	for {
		select {
		case p := <-progress:
			if err := stream.Send(&swarmpb.PullImageResponse{Done: p.Done, Total: p.Total}); err != nil {
				return err
			}
		case o := <-done:
			if o.err != nil {
				return s.node.explain(pullError(o.err))
			}
			return stream.Send(&swarmpb.PullImageResponse{Image: listed([]runtime.Image{o.image})[0]})
		}
	}
}

// pullError is imageError without the hint at what this host has, which is not what a pull is about.
func pullError(err error) error {
	if errors.Is(err, runtime.ErrNotFound) {
		return wire.Errorf(wire.CodeNotFound, "%w", err)
	}
	return imageError("", err)
}

// InspectImage tells all about an image of this host's store.
func (s *localServer) InspectImage(ctx context.Context, req *swarmpb.InspectImageRequest) (*swarmpb.InspectImageResponse, error) {
	if err := s.node.containerdReady(ctx); err != nil {
		return nil, err
	}
	found, err := s.node.runtime.InspectImage(ctx, req.GetImage())
	if err != nil {
		return nil, imageError("inspect image "+req.GetImage(), err)
	}
	response := &swarmpb.InspectImageResponse{Image: listed([]runtime.Image{found.Image})[0], Platforms: found.Platforms, Config: found.Config}
	for _, layer := range found.Layers {
		response.Layers = append(response.Layers, layer.Digest)
		response.LayerSizes = append(response.LayerSizes, layer.Size)
	}
	return response, nil
}

// ListImages lists this host's store.
func (s *localServer) ListImages(ctx context.Context, _ *swarmpb.ListImagesRequest) (*swarmpb.ListImagesResponse, error) {
	if err := s.node.containerdReady(ctx); err != nil {
		return nil, err
	}
	images, err := s.node.runtime.Images(ctx)
	if err != nil {
		return nil, imageError("", err)
	}
	return &swarmpb.ListImagesResponse{Images: listed(images)}, nil
}

// RemoveImage removes an image from this host's store.
func (s *localServer) RemoveImage(ctx context.Context, req *swarmpb.RemoveImageRequest) (*swarmpb.RemoveImageResponse, error) {
	if err := s.node.containerdReady(ctx); err != nil {
		return nil, err
	}
	removed, err := s.node.runtime.RemoveImage(ctx, req.GetImage(), req.GetForce())
	if err != nil {
		return nil, imageError("", err)
	}
	return &swarmpb.RemoveImageResponse{Removed: removed}, nil
}

// containerdTimeout bounds how long a call waits for a containerd that is just starting.
const containerdTimeout = 15 * time.Second

func (n *Node) containerdReady(ctx context.Context) error {
	if n.child == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, containerdTimeout)
	defer cancel()
	if err := n.child.Ready(ctx); err != nil {
		return wire.Errorf(wire.CodeUnavailable, "containerd does not answer: its log, %s, says why (%w)", n.child.LogFile(), err)
	}
	return nil
}

func listed(images []runtime.Image) []*swarmpb.Image {
	var out []*swarmpb.Image
	for _, i := range images {
		out = append(out, &swarmpb.Image{Name: i.Name, Digest: i.Digest, SizeBytes: i.Size, CreatedAt: i.CreatedAt.UnixNano()})
	}
	return out
}

// imageError gives the runtime's errors their code, and those that do not say what failed the verb.
func imageError(verb string, err error) error {
	if verb != "" {
		err = fmt.Errorf("%s: %w", verb, err)
	}
	switch {
	case errors.Is(err, runtime.ErrNotFound):
		return wire.Errorf(wire.CodeNotFound, "%w; `swarmctl image ls` lists what this host has", err)
	case errors.Is(err, runtime.ErrInUse):
		return wire.Errorf(wire.CodeInUse, "%w", err)
	case errors.Is(err, runtime.ErrInvalid):
		return wire.Errorf(wire.CodeInvalid, "%w", err)
	}
	return err
}
