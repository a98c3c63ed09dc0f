package wire

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestToken_Printed_ParsesBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var want Token
		copy(want.RootDigest[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "digest"))
		want.Secret = base36(rapid.SliceOfN(rapid.Byte(), secretBytes, secretBytes).Draw(t, "secret"), secretLength)
		text := want.String()
		if len(text) != len(tokenPrefix)+50+1+25 {
			t.Fatalf("%q has the wrong length", text)
		}
		got, err := ParseToken(" " + text + "\n")
		if err != nil || got != want || !got.Equal(want) {
			t.Fatalf("got %v, %v", got, err)
		}
	})
}

func TestNewToken_OfARoot_NamesIt(t *testing.T) {
	ca := newTestCA(t, "c1")
	text, err := NewToken(ca.pem)
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewToken(ca.pem)
	if err != nil || other == text {
		t.Fatalf("two tokens are the same, or %v", err)
	}
	token, err := ParseToken(text)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := RootDigest(ca.pem)
	if err != nil || digest != token.RootDigest {
		t.Fatalf("digest %x, %v", digest, err)
	}
	if _, err := NewToken([]byte("nonsense")); err == nil {
		t.Error("a token of no root")
	}
}

func TestParseToken_Malformed_SaysWhyAndKeepsTheSecret(t *testing.T) {
	good := Token{Secret: strings.Repeat("7", secretLength)}.String()
	for _, in := range []string{
		"", "   ", "hello", "SWMTKN-2" + good[8:], good[:len(good)-1], good + "x", strings.Replace(good, "7", "_", 1),
		strings.ReplaceAll(good, "7", "Q"), "SWMTKN-1-" + strings.Repeat("z", 50) + "-" + strings.Repeat("0", 25),
		"SWMTKN-1-" + strings.Repeat("0", 50) + "-" + strings.Repeat("z", 25), good + "-" + good,
		"SWMTKN-1-" + strings.Repeat("é", 25) + "-" + strings.Repeat("0", 25),
	} {
		_, err := ParseToken(in)
		if CodeOf(err) != CodeInvalid {
			t.Errorf("%q: %v", in, err)
			continue
		}
		if !strings.Contains(err.Error(), "swarmctl join-token") || strings.Contains(err.Error(), "77777") {
			t.Errorf("%q: poor error %q", in, err)
		}
	}
}
