package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// oomScore keeps the kernel from choosing swarmd for want of memory before any container, but not before everything of
// the host. containerd, and with it the shims, has -999; containers have 0.
const oomScore = -500

// protect lowers this process's score in file, /proc/self/oom_score_adj. One that is as low already is left alone.
func protect(file string) error {
	body, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read own OOM score: %w", err)
	}
	if now, err := strconv.Atoi(strings.TrimSpace(string(body))); err == nil && now <= oomScore {
		return nil
	}
	if err := os.WriteFile(file, []byte(strconv.Itoa(oomScore)), 0); err != nil {
		return fmt.Errorf("lower own OOM score: %w", err)
	}
	return nil
}
