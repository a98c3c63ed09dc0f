package swarmpb

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"math/big"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
)

// IDLength is the length of every object's ID: 128 bits in base36.
const IDLength = 25

// NewID draws a random ID.
func NewID() string {
	var bits [16]byte
	rand.Read(bits[:]) // never fails: the runtime ends the process when the kernel gives no randomness
	return formatID(bits[:])
}

// DerivedID is the ID that follows from parts: the same parts give the same ID on every machine.
func DerivedID(parts ...string) string {
	hash := sha256.New()
	var length [8]byte
	for _, part := range parts {
		// The length keeps ("ab", "c") and ("a", "bc") apart.
		binary.BigEndian.PutUint64(length[:], uint64(len(part)))
		hash.Write(length[:])
		hash.Write([]byte(part))
	}
	return formatID(hash.Sum(nil)[:16])
}

// TaskID is the ID of one attempt to run one replica. nodeID is empty: slots tell global services' tasks apart too.
func TaskID(serviceID string, slot uint64, nodeID string, attempt uint64) string {
	return DerivedID("task", serviceID, strconv.FormatUint(slot, 10), nodeID, strconv.FormatUint(attempt, 10))
}

// NodeSlot is the slot of a node's task of a global service or job, unless that is another one's; then the next free
// one is. It is far from the slots of replicas.
func NodeSlot(nodeID string) uint64 {
	hash := sha256.Sum256([]byte("slot\x00" + nodeID))
	return binary.BigEndian.Uint64(hash[:])>>2 | 1<<61
}

// TaskName is how users call a task: web.1, or web.<node ID> for the task of a node (Task.node_id).
func TaskName(serviceName string, slot uint64, nodeID string) string {
	if nodeID != "" {
		return serviceName + "." + nodeID
	}
	return serviceName + "." + strconv.FormatUint(slot, 10)
}

// ValidID tells whether s has the form of an ID.
func ValidID(s string) bool {
	if len(s) != IDLength {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

func formatID(bits []byte) string {
	s := new(big.Int).SetBytes(bits).Text(36)
	return strings.Repeat("0", IDLength-len(s)) + s
}

// Clone is a deep copy of m, for changing what the store gave out.
func Clone[M proto.Message](m M) M {
	return proto.CloneOf(m)
}
