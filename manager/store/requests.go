package store

// Answered tells whether a user's write of this request ID was applied, as far as that is remembered (MaxRequests): a retry has
// nothing left to do.
func (v *View) Answered(requestID string) bool {
	_, known := v.requests.Get(requestID)
	return known
}
