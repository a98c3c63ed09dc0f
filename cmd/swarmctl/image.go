package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// chunkSize is how much of an archive goes into one message.
const chunkSize = 256 << 10

// imageRow is an image in a listing.
type imageRow struct {
	Name      string `json:"name"`
	Digest    string `json:"digest"`
	SizeBytes int64  `json:"sizeBytes"`
	CreatedAt string `json:"createdAt"`

	created int64
}

func (a *app) imageCommand() *cobra.Command {
	return group("image", "Pull, load, list and remove the images of this host", a.imagePullCommand(), a.imageLoadCommand(), a.imageListCommand(),
		a.imageInspectCommand(), a.imageRemoveCommand())
}

func (a *app) imageLoadCommand() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:   "load FILE.tar",
		Short: "Load images from a docker or OCI archive into this host's store",
		Long: `Load images from a docker or OCI archive, plain or gzip, into this host's store; "-" reads standard
input. A service finds them there when no registry answers: load them on every host that may run it.`,
		Example: "  swarmctl image load web.tar\n  docker save web:1.4 | swarmctl image load -",
		Args:    oneArg("archive, or - for standard input"),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := a.in
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return fmt.Errorf("image load: %w", err)
				}
				defer f.Close()
				in = f
			}
			return a.with(func(c *client) error {
				images, err := upload(cmd.Context(), c, in)
				if err != nil {
					return err
				}
				for _, i := range images {
					text := fmt.Sprintf("loaded %s (%s)", i.Name, size(i.SizeBytes))
					if quiet {
						text = i.Name
					}
					_, _ = fmt.Fprintln(a.out, text)
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print only names")
	return cmd
}

// upload sends an archive. When the other side refuses it midway, the reason comes with the answer.
func upload(ctx context.Context, c *client, in io.Reader) ([]*swarmpb.Image, error) {
	stream, err := c.local.LoadImage(ctx)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, chunkSize)
	for {
		n, err := io.ReadFull(in, buf)
		if n > 0 && stream.Send(&swarmpb.LoadImageRequest{Chunk: buf[:n]}) != nil {
			break
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("image load: %w", err)
		}
	}
	r, err := stream.CloseAndRecv()
	return r.GetImages(), err
}

func (a *app) imageListCommand() *cobra.Command {
	images := table[imageRow]{func(r imageRow) string { return r.Digest }, []column[imageRow]{
		{"NAME", func(r imageRow) string { return r.Name }, true},
		{"DIGEST", func(r imageRow) string { return r.Digest[:min(len(r.Digest), len("sha256:")+12)] }, false},
		{"CREATED", func(r imageRow) string { return a.ago(r.created) }, false},
		{"SIZE", func(r imageRow) string { return size(r.SizeBytes) }, false},
	}}
	return listCommand(a, "List the images of this host", "  swarmctl image ls\n  swarmctl image ls --format '{{.Name}} {{.Digest}}'", images,
		func(ctx context.Context, c *client) ([]imageRow, error) {
			r, err := c.local.ListImages(ctx, &swarmpb.ListImagesRequest{})
			var rows []imageRow
			for _, i := range r.GetImages() {
				rows = append(rows, imageRow{Name: i.Name, Digest: i.Digest, SizeBytes: i.SizeBytes, CreatedAt: stamp(i.CreatedAt), created: i.CreatedAt})
			}
			return rows, err
		})
}

func (a *app) imageRemoveCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm IMAGE...", Aliases: []string{"remove"}, Short: "Remove images from this host",
		Long: `Remove images from this host's store. One that containers use stays, unless --force is given. Images that nothing uses
go by themselves when the disk is 85 % full.`,
		Example: "  swarmctl image rm whoami:v1",
		Args:    someArgs("image"), ValidArgsFunction: a.complete(imageNames),
		RunE: a.call(func(ctx context.Context, c *client, args []string) error {
			return each(args, func(arg string) error {
				r, err := c.local.RemoveImage(ctx, &swarmpb.RemoveImageRequest{Image: arg, Force: force})
				if err == nil {
					_, err = fmt.Fprintln(a.out, strings.Join(r.Removed, "\n"))
				}
				return err
			})
		}),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "remove an image that containers use")
	return cmd
}
