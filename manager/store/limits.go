package store

const (
	// MaxWrites is the most writes that one proposal may hold.
	MaxWrites = 500
	// MaxGuards is the most guards that one proposal may hold.
	MaxGuards = 2 * MaxWrites
	// MaxKeyLength bounds each string of a row's key, in bytes.
	MaxKeyLength = 256
	// MaxRequests is how many users' writes are remembered for retries; the oldest go first.
	MaxRequests = 10_000
	// MaxAlarms is the most alarms kept. What is raised beyond it counts up one alarm of kind AlarmOverflow.
	MaxAlarms = 1_000
	// MaxRevisions is how many specs of a service are kept; the oldest go first.
	MaxRevisions = 10
	// MaxProbeOutput bounds what a status says of a probe's output, in bytes.
	MaxProbeOutput = 1 << 10
	// MaxFeedChanges is the most changes that the feed holds for watchers that lag.
	MaxFeedChanges = 1 << 16
	// MaxRowBytes bounds one record of a snapshot.
	MaxRowBytes = 4 << 20
)

// Kinds of alarms that the store raises itself.
const (
	// AlarmUnknownOperation: the log holds a write that this version does not know.
	AlarmUnknownOperation = "unknown-operation"
	// AlarmIDConflict: an ID was to be made again with other content.
	AlarmIDConflict = "id-conflict"
	// AlarmOverflow: there are more alarms than the store keeps.
	AlarmOverflow = "alarm-overflow"
)
