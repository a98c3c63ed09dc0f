package swarmpb

import (
	"strings"
	"testing"
)

func TestServiceSpecValidate_GenericResources_CountsOfKindsAreTaken(t *testing.T) {
	kinds := func(n int) (out []*GenericResource) {
		for i := range n {
			out = append(out, &GenericResource{Kind: "k" + strings.Repeat("x", i), Count: 1})
		}
		return out
	}
	for name, test := range map[string]struct {
		reserve []*GenericResource
		limit   bool
		want    string // empty: it is taken
	}{
		"a word, and one of CDI": {reserve: []*GenericResource{{Kind: "gpu", Count: 1}, {Kind: "nvidia.com/gpu", Count: 2}}},
		"as many as there may":   {reserve: kinds(MaxGenericKinds)},
		"one too many":           {reserve: kinds(MaxGenericKinds + 1), want: "33 kinds are too many; use at most 32"},
		"no kind":                {reserve: []*GenericResource{{Count: 1}}, want: "it is not a kind; use one such as gpu"},
		"two slashes":            {reserve: []*GenericResource{{Kind: "a/b/c", Count: 1}}, want: `generic resource "a/b/c": it is not a kind`},
		"none of it":             {reserve: []*GenericResource{{Kind: "gpu"}}, want: `generic resource "gpu": 0 cannot be reserved; use 1 to`},
		"less than none":         {reserve: []*GenericResource{{Kind: "gpu", Count: -1}}, want: "-1 cannot be reserved"},
		"twice":                  {reserve: []*GenericResource{{Kind: "gpu", Count: 1}, {Kind: "gpu", Count: 2}}, want: "it is reserved twice; add the counts up"},
		"by name":                {reserve: []*GenericResource{{Kind: "gpu", Count: 1, Instances: []string{"u1"}}}, want: "the cluster chooses the instances"},
		"limited":                {reserve: []*GenericResource{{Kind: "gpu", Count: 1}}, limit: true, want: "it cannot be limited; reserve it"},
	} {
		spec := validSpec()
		spec.Task.Resources.Reservations.Generic = test.reserve
		if test.limit {
			spec.Task.Resources.Limits.Generic = test.reserve
		}
		err := spec.Validate()
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}
