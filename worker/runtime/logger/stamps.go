package main

import "time"

// timeLayout has a fixed width, so that lines sort by time.
const timeLayout = "2006-01-02T15:04:05.000000000Z"

// Where timeLayout has the digits of the nanoseconds.
const fractionAt, fractionEnd = 20, 29

// maxAhead is how far, in nanoseconds, stamps may be ahead of the clock. Where the clock was set back by more, they follow it.
const maxAhead = int64(time.Millisecond)

// stamps gives each record a time of its own, later than those before. The clock is read once for all that one read has
// brought; its records are a nanosecond apart. Reading and formatting it for each line was most of what a line cost.
type stamps struct {
	now  func() time.Time
	last int64 // text's time, in nanoseconds since 1970
	used bool  // a record has it
	text []byte
}

func newStamps() *stamps { return &stamps{now: time.Now, used: true} }

// tick reads the clock.
func (s *stamps) tick() {
	n := s.now().UnixNano()
	if n > s.last || s.last-n > maxAhead {
		s.set(n)
		s.used = false
	}
}

// next is good until the next call.
func (s *stamps) next() []byte {
	if !s.used {
		s.used = true
		return s.text
	}
	for i := fractionEnd - 1; i >= fractionAt && len(s.text) > 0; i-- {
		if s.text[i] < '9' {
			s.text[i]++
			s.last++
			return s.text
		}
		s.text[i] = '0'
	}
	s.set(s.last + 1)
	return s.text
}

func (s *stamps) set(n int64) {
	if len(s.text) == 0 || n/1e9 != s.last/1e9 || n < 0 {
		s.text = time.Unix(0, n).UTC().AppendFormat(s.text[:0], timeLayout)
		s.last = n
		return
	}
	s.last = n
	n %= 1e9
	for i := fractionEnd - 1; i >= fractionAt; i-- {
		s.text[i] = byte('0' + n%10)
		n /= 10
	}
}
