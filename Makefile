# swarmd: build, check, test, demo. `make help` lists the targets.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
PREFIX  ?= /usr/local
LDFLAGS := -s -w -X main.version=$(VERSION)
TOOL    := go tool -modfile=.ci/tools/go.mod
SUDO    := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

export CGO_ENABLED = 0
# Builds do not depend on the state of the checkout; the version comes from LDFLAGS.
export GOFLAGS += -buildvcs=false

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

.PHONY: setup
setup: ## install what running containers needs and is missing: runc (Debian, Ubuntu)
	@if ! command -v runc >/dev/null; then \
		echo "setup: installing the package runc, which starts containers"; \
		$(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq runc; \
	fi

.PHONY: setup-tests
setup-tests: setup ## install what the tests need besides: crun, the other OCI runtime
	@if ! command -v crun >/dev/null; then \
		echo "setup-tests: installing the package crun, which the tests start containers with too"; \
		$(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq crun; \
	fi

.PHONY: build
build: ## build bin/swarmd and bin/swarmctl, static
	@mkdir -p bin
	go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/swarmd ./cmd/swarmctl

build/whoami.tar: $(wildcard e2e/whoami/*.go e2e/sctp/*.go e2e/image/*.go e2e/mkimage/*.go)
	@mkdir -p build
	go build -trimpath -ldflags '-s -w -buildid=' -o build/whoami ./e2e/whoami
	go run ./e2e/mkimage -binary build/whoami -o $@ whoami:v1 whoami:v2 whoami:v3 whoami:latest whoami:crash whoami:sick whoami:health

.PHONY: image
image: build/whoami.tar ## build the demo image, build/whoami.tar (OCI archive)

.PHONY: install
install: build ## install binaries, completion and the systemd unit under PREFIX (default /usr/local)
	$(SUDO) install -D -m 0755 bin/swarmd $(DESTDIR)$(PREFIX)/bin/swarmd
	$(SUDO) install -D -m 0755 bin/swarmctl $(DESTDIR)$(PREFIX)/bin/swarmctl
	bin/swarmctl completion bash | $(SUDO) install -D -m 0644 /dev/stdin $(DESTDIR)$(PREFIX)/share/bash-completion/completions/swarmctl
	sed 's#/usr/local#$(PREFIX)#' cmd/swarmd/swarmd.service | $(SUDO) install -D -m 0644 /dev/stdin $(DESTDIR)$(PREFIX)/lib/systemd/system/swarmd.service

.PHONY: demo
demo: setup build image ## three hosts on this machine, a service of three replicas, its answers
	go build -o build/demo-lab ./e2e/demo
	$(SUDO) build/demo-lab up

.PHONY: demo-down
demo-down: ## end the demo; nothing is left behind
	@if [ -x build/demo-lab ]; then $(SUDO) build/demo-lab down; else echo "no demo was built"; fi

.PHONY: check
check: ## formatting, vet, staticcheck, import rules, determinism, messages, generated code
	@echo "== gofmt";       files=$$(git ls-files -co --exclude-standard '*.go' | xargs gofmt -l); [ -z "$$files" ] || { echo "gofmt would change: $$files"; exit 1; }
	@echo "== vet";         go vet ./...
	@echo "== staticcheck"; $(TOOL) staticcheck ./...
	@echo "== lint";        go run ./.ci/lint
	@echo "== buf lint";    $(TOOL) buf lint proto
	@echo "== buf breaking";$(TOOL) buf breaking proto --against proto/baseline.binpb
	@echo "== generated";   .ci/generated
	@echo "== modules";     go mod verify >/dev/null && go mod tidy -diff
	@echo "== access";      go test -run 'Access' ./proto/wire

.PHONY: generate
generate: ## generate code from the .proto files, and the logger's binaries
	$(TOOL) buf generate proto --template proto/buf.gen.yaml -o proto
	go generate ./...

.PHONY: proto-baseline
proto-baseline: ## at a release: what `buf breaking` compares with from now on
	$(TOOL) buf build proto --exclude-source-info -o proto/baseline.binpb

.PHONY: test
test: setup-tests build image ## all tests, units first, then end to end with real containers (needs root)
	.ci/test

.PHONY: e2e
e2e: setup build image ## only the end-to-end tests
	go test -count=1 -timeout 20m ./e2e/...

.PHONY: sim
sim: ## whole clusters under faults in virtual time: SEEDS of them (default 1) from SEED on (default 1)
	SIM_SEEDS=$${SEEDS:-1} SIM_SEED=$${SEED:-1} go test -count=1 -timeout 0 -run TestSeeds ./e2e/sim

.PHONY: bench
bench: setup-tests build image ## the benchmarks behind docs/performance.md
	.ci/bench

.PHONY: bench-net
bench-net: setup build image ## what the network's paths cost, beside HAProxy, which it installs (Debian, Ubuntu); ROUNDS (default 7)
	@if ! command -v haproxy >/dev/null; then \
		echo "bench-net: installing the package haproxy, to compare with"; \
		$(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq haproxy; \
	fi
	.ci/bench net

.PHONY: bench-scale
bench-scale: ## real managers and simulated workers: SIZES (default 100x1000 to 10000x1000000); a chart in docs/scale.svg
	@mkdir -p build
	go build -o build/scale ./e2e/scale
	build/scale -lose -o docs/scale.svg -sizes $${SIZES:-100x1000,1000x30000,5000x150000,10000x1000000}

.PHONY: bench-faults
bench-faults: setup build image ## times from a fault to its repair, on real hosts: median and worst of RUNS (default 20)
	go run ./e2e/faults -runs $${RUNS:-20}

.PHONY: soak
soak: setup build image ## a worker's daemons killed CYCLES times (default 100; containerd half as often) under 20 containers; 100,000 requests while all changes; soak-rollout
	CYCLES=$${CYCLES:-100} go test -count=1 -timeout 0 -v -run 'TestWorker_DaemonsKilledAgainAndAgain' ./e2e/node
	SOAK=1 go test -count=1 -timeout 0 -v -run 'TestTraffic' ./e2e/node
	$(MAKE) --no-print-directory soak-rollout

.PHONY: soak-rollout
soak-rollout: setup build image ## UPDATES (default 50) under REQUESTS (default 1000000) a strategy, of ROLLOUT_STRATEGIES (default all: start-first,stop-first,blue-green,canary), then FAULTS (default 5) of each kind
	SOAK=1 go test -count=1 -timeout 0 -v -run 'TestRollout_UnderLoad' ./e2e/node

.PHONY: clean
clean: ## remove what was built
	rm -rf bin build
