package bin

import _ "embed"

//go:embed logger-arm64.gz
var compressed []byte
