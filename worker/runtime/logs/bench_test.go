package logs

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
)

// BenchmarkFollow reads a log while it is written and rotated, as the logger's default sizes have it. It reports MB/s of
// log read, and the live heap while it reads.
func BenchmarkFollow(b *testing.B) {
	for _, length := range []int{20, 100, 1000} {
		b.Run(fmt.Sprintf("line=%d", length), func(b *testing.B) {
			w := newWriter(b, 3)
			r := newReader(b, w, Options{})
			record := "2026-01-02T15:04:05.000000000Z stdout F " + strings.Repeat("x", length) + "\n"
			chunk := strings.Repeat(record, 64<<10/len(record))
			b.SetBytes(int64(len(chunk)))
			b.ReportAllocs()
			got, want := 0, 0
			buffer := make([]byte, 0, 80<<10)
			for b.Loop() {
				if w.size+len(chunk) > 10<<20 {
					w.rotate()
				}
				w.raw(chunk)
				want += len(chunk)
				for {
					p, done, err := r.Read(buffer[:0], 64<<10)
					if err != nil {
						b.Fatal(err)
					}
					got += len(p)
					if done {
						break
					}
				}
			}
			if got != want {
				b.Fatalf("%d bytes of %d", got, want)
			}
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			b.ReportMetric(float64(m.HeapAlloc)/1e6, "MB-heap")
		})
	}
}

// BenchmarkIdle looks at a log to which nothing is added: what following a quiet task costs each time.
func BenchmarkIdle(b *testing.B) {
	w := newWriter(b, 3)
	w.record("stdout", 'F', "hello")
	r := newReader(b, w, Options{})
	drain(b, r)
	for b.Loop() {
		if _, _, err := r.Read(nil, 64<<10); err != nil {
			b.Fatal(err)
		}
	}
}
