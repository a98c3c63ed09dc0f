package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// sayEvery is the pause between two lines of progress where nothing can be drawn over.
const sayEvery = 5 * time.Second

func (a *app) imagePullCommand() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use: "pull IMAGE", Short: "Fetch an image from its registry into this host's store",
		Long: `Fetch an image from its registry into this host's store, with your own credentials for the registry if you are
logged in. Services pull what they need by themselves; this is for having an image here before.`,
		Example: "  swarmctl image pull nginx:alpine\n  swarmctl image pull registry.local:5000/team/app:1.4",
		Args:    oneArg("image"), ValidArgsFunction: first(a.complete(imageNames)),
		RunE: a.call(func(ctx context.Context, c *client, args []string) error {
			auth, err := savedAuth(args[0])
			if err != nil {
				a.warn([]string{err.Error() + "; pulling without credentials"})
			}
			stream, err := c.local.PullImage(ctx, &swarmpb.PullImageRequest{Image: args[0], RegistryAuth: auth})
			if err != nil {
				return err
			}
			image, err := a.showPull(stream.Recv, quiet)
			if err != nil {
				return err
			}
			text := fmt.Sprintf("pulled %s@%s (%s)", image.GetName(), image.GetDigest(), size(image.GetSizeBytes()))
			if quiet {
				text = image.GetName()
			}
			_, err = fmt.Fprintln(a.out, text)
			return err
		}),
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print only the image's name, when it is here")
	return cmd
}

// showPull shows how far a pull is, until its last message.
func (a *app) showPull(receive func() (*swarmpb.PullImageResponse, error), quiet bool) (*swarmpb.Image, error) {
	said, drawn := a.now(), false
	for {
		m, err := receive()
		if drawn && (err != nil || m.GetImage() != nil) {
			_, _ = fmt.Fprint(a.out, "\r\x1b[K")
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil, errors.New("image pull: swarmd ended the pull without a result; try again")
		case err != nil:
			return nil, err
		case m.GetImage() != nil:
			return m.GetImage(), nil
		case quiet || m.GetTotal() == 0:
			continue
		}
		text := fmt.Sprintf("%s of %s", size(m.GetDone()), size(m.GetTotal()))
		switch {
		case a.terminal:
			drawn = true
			_, _ = fmt.Fprint(a.out, "\r\x1b[K"+text)
		case a.now().Sub(said) >= sayEvery:
			said = a.now()
			_, _ = fmt.Fprintln(a.out, text)
		}
	}
}

// imageDetail is an image of this host, to look at.
type imageDetail struct {
	Name      string          `json:"name"`
	Digest    string          `json:"digest"`
	SizeBytes int64           `json:"sizeBytes"`
	CreatedAt string          `json:"createdAt"`
	Platforms []string        `json:"platforms"`
	Layers    []imageLayer    `json:"layers"`
	Config    json.RawMessage `json:"config"`
}

type imageLayer struct {
	Digest    string `json:"digest"`
	SizeBytes int64  `json:"sizeBytes"`
}

func (a *app) imageInspectCommand() *cobra.Command {
	var f format
	cmd := &cobra.Command{
		Use: "inspect IMAGE...", Short: "Show all about images of this host",
		Example: "  swarmctl image inspect nginx:alpine\n  swarmctl image inspect -f '{{.Digest}} {{join .Platforms \", \"}}' nginx:alpine",
		Args:    someArgs("image"), ValidArgsFunction: a.complete(imageNames),
		RunE: a.call(func(ctx context.Context, c *client, args []string) error {
			found := []any{}
			missing := each(args, func(arg string) error {
				r, err := c.local.InspectImage(ctx, &swarmpb.InspectImageRequest{Image: arg})
				if err == nil {
					found = append(found, detailOf(r))
				}
				return err
			})
			if f.kind == formatTemplate {
				return errors.Join(f.execute(a.out, fieldsOf[imageDetail](), found), missing)
			}
			return errors.Join(printJSON(a.out, found), missing)
		}),
	}
	f.define(cmd, formatJSON)
	return cmd
}

func detailOf(r *swarmpb.InspectImageResponse) imageDetail {
	i := r.GetImage()
	d := imageDetail{
		Name: i.GetName(), Digest: i.GetDigest(), SizeBytes: i.GetSizeBytes(), CreatedAt: stamp(i.GetCreatedAt()),
		Platforms: append([]string{}, r.GetPlatforms()...), Layers: []imageLayer{}, Config: r.GetConfig(),
	}
	if !json.Valid(d.Config) {
		d.Config = json.RawMessage("null")
	}
	for n, digest := range r.GetLayers() {
		layer := imageLayer{Digest: digest}
		if n < len(r.GetLayerSizes()) {
			layer.SizeBytes = r.GetLayerSizes()[n]
		}
		d.Layers = append(d.Layers, layer)
	}
	return d
}

// parsePull reads --pull.
func parsePull(s string) (swarmpb.PullPolicy, error) {
	policy, err := swarmpb.ParsePullPolicy(s)
	if err != nil {
		return 0, fmt.Errorf("--pull %q: want always, missing or never", s)
	}
	return policy, nil
}
