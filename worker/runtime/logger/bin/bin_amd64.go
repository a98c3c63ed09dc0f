package bin

import _ "embed"

//go:embed logger-amd64.gz
var compressed []byte
