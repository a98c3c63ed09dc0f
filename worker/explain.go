package worker

import (
	"errors"
	"fmt"
	"strings"

	"github.com/swarmd/swarmd/worker/runtime"
)

// maxText bounds a status's error and message, in bytes.
const maxText = 1000

// oneLine makes a text fit for one line of a listing.
func oneLine(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText-3], "") + "..."
	}
	return text
}

// explainExit says why a container ended; empty when it ended well.
func explainExit(exit runtime.Exit) string {
	switch {
	case exit.OOMKilled && (exit.Code != 0 || exit.Unknown): // one of its processes was killed, and it did not get over it
		return "out of memory"
	case exit.Reason != "":
		return exit.Reason
	case exit.Unknown:
		return "it ended while nobody watched; its exit code is not known"
	case exit.Code == 0:
		return ""
	case exit.Code > 128 && exit.Code <= 128+64:
		return fmt.Sprintf("killed by signal %d", exit.Code-128)
	}
	return fmt.Sprintf("exit code %d", exit.Code)
}

// explain is an error in the words for its task's status, which need not name the task's own container.
func explain(err error) string {
	for of := (*runtime.ContainerError)(nil); errors.As(err, &of); {
		err = of.Err
	}
	return oneLine(err.Error())
}

// explainPull says why an image is not there.
func explainPull(image string, err error) string {
	if why := (*runtime.PullError)(nil); errors.As(err, &why) && errors.Is(err, runtime.ErrNotFound) {
		return oneLine("image not found: " + image + ": " + why.Reason)
	}
	if errors.Is(err, runtime.ErrNotFound) {
		return "image not found: " + image + "; check the name and tag, load it with `swarmctl image load` on this host, or name a plain-HTTP registry with `swarmd --insecure-registry`"
	}
	return "image " + image + ": " + strings.TrimPrefix(explain(err), "pull "+image+": ")
}
