package replica

// setStall makes every write wait in f before it is made, as on a disk that hangs.
func (l *logStore) setStall(f func()) { l.stall.Store(&f) }
