package main

import (
	"os"
	"os/user"
	"unicode/utf8"
)

// authorLimit is how many characters of an author the managers take.
const authorLimit = 128

// whoami is who the history names for what is asked for: ann@host. Behind sudo that is who called it.
func whoami(env func(string) string, hostname func() (string, error)) string {
	name := env("SUDO_USER")
	if name == "" {
		name = env("USER")
	}
	if name == "" {
		if u, err := user.Current(); err == nil {
			name = u.Username
		}
	}
	if host, err := hostname(); err == nil && host != "" {
		name += "@" + host
	}
	name = clean(name)
	if utf8.RuneCountInString(name) > authorLimit {
		name = string([]rune(name)[:authorLimit])
	}
	return name
}

// author is whoami of this process.
func author() string { return whoami(os.Getenv, os.Hostname) }
