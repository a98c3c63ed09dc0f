package replica

// setStall makes every write wait in f before it is made, as on a disk that hangs.
func (l *logStore) setStall(f func()) { l.setFault(func() error { f(); return nil }) }

// setFault makes every write wait in f before it is made, and fail with its error.
func (l *logStore) setFault(f func() error) { l.stall.Store(&f) }
