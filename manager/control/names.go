package control

import (
	"crypto/rand"
	"math/big"
)

// The words that a service is named with when its user gives it no name.
var (
	adjectives = []string{
		"agile", "amber", "ample", "azure", "bold", "brave", "breezy", "bright", "brisk", "calm", "candid", "cheery",
		"clear", "clever", "cosy", "crisp", "curious", "dapper", "daring", "deft", "eager", "early", "earnest", "easy",
		"elated", "fair", "fancy", "fleet", "fluent", "fond", "frank", "fresh", "gentle", "glad", "golden", "grand",
		"happy", "hardy", "hearty", "honest", "humble", "jolly", "keen", "kind", "lively", "loyal", "lucid", "lucky",
		"mellow", "merry", "mighty", "mild", "modest", "neat", "nimble", "noble", "patient", "placid", "plucky", "proud",
		"quick", "quiet", "rapid", "ready", "robust", "rosy", "rustic", "serene", "sharp", "silent", "sincere", "smart",
		"snug", "sober", "solid", "spry", "steady", "sturdy", "sunny", "swift", "tidy", "tranquil", "trusty", "upbeat",
		"vivid", "warm", "wise", "witty", "young", "zesty",
	}
	nouns = []string{
		"acorn", "anchor", "aspen", "badger", "bamboo", "beacon", "birch", "bison", "brook", "canyon", "cedar", "cherry",
		"cliff", "clover", "comet", "condor", "coral", "crane", "creek", "delta", "dolphin", "dune", "eagle", "ember",
		"falcon", "fern", "finch", "fjord", "forest", "fox", "garnet", "geyser", "glacier", "grove", "harbor", "hawk",
		"hazel", "heron", "hill", "island", "ivy", "jasmine", "juniper", "kestrel", "lagoon", "lantern", "larch", "lark",
		"lotus", "lynx", "maple", "marble", "marlin", "meadow", "meteor", "monsoon", "moose", "nectar", "oak", "oasis",
		"ocean", "orchid", "osprey", "otter", "owl", "panda", "pebble", "pine", "prairie", "puffin", "quartz", "raven",
		"reef", "river", "robin", "sage", "seal", "sparrow", "spruce", "summit", "thistle", "tiger", "topaz", "tulip",
		"valley", "walnut", "willow", "wolf", "wren", "zephyr",
	}
)

// nameTries is how many random names are tried before one is made longer.
const nameTries = 20

// randomName draws a name that is not taken, such as calm_otter.
func randomName(taken func(string) bool) string {
	name := draw(adjectives) + "_" + draw(nouns)
	for range nameTries {
		if !taken(name) {
			return name
		}
		name = draw(adjectives) + "_" + draw(nouns)
	}
	for taken(name) {
		name += "_" + draw(nouns)
	}
	return name
}

func draw(words []string) string {
	// The error is that of the kernel's source of randomness, which never fails.
	i, _ := rand.Int(rand.Reader, big.NewInt(int64(len(words))))
	return words[i.Int64()]
}
