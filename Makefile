# footplate: everything that a developer runs. `make` prints this help.

GO      ?= go
SEEDS   ?= 100
ROUNDS  ?= 20
BIN     := $(CURDIR)/.build/footplate
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

.DEFAULT_GOAL := help
.PHONY: help build demo test vet soak sim bench reference need clean

help: ## print this help
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

build: ## build .build/footplate, one static binary
	@mkdir -p $(dir $(BIN))
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X footplate/cli.Version=$(VERSION)' -o $(BIN) ./cli/footplate

demo: build ## show it at work: real builds, an agent and the leader killed (ONCE=1 ends by itself)
	@bash deploy/demo.sh $(BIN)

test: need vet ## every test, with the race detector where it matters
	@bash deploy/test.sh

vet: ## go vet and gofmt
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo 'gofmt would change:'; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...

sim: ## the simulator: make sim SEEDS=1000
	$(GO) test ./controlplane/sim -run TestSeeds -count 1 -seeds $(SEEDS) -v

soak: need build ## the long runs: thousands of seeds, ROUNDS rounds of each fault on real processes, an hour without Slack and Postgres
	$(GO) test ./controlplane/sim -run TestSeeds -count 1 -seeds 5000 -timeout 60m
	FOOTPLATE_ROUNDS=$(ROUNDS) $(GO) test ./cli/footplate -run 'TestAgentKilled|TestHostCutOff|TestLeaderKilled|TestNoQuorum|TestHistory|TestKilled' -count 1 -v -timeout 3h
	FOOTPLATE_OUTAGE=1h $(GO) test ./cli/footplate -run 'TestOutage$$' -count 1 -v -timeout 2h

bench: need ## the benchmarks, beside their peers: see BENCHMARKS.md
	$(GO) test ./controlplane ./controlplane/replica ./cli/footplate -run '^$$' -bench . -benchtime 1x -count 1 -p 1 -timeout 60m
	$(GO) test ./cli -run '^$$' -bench Start -benchtime 40x -count 1

reference: build ## write the generated parts of OPERATIONS.md
	@$(BIN) reference --write OPERATIONS.md

need: ## install what the tests need on a bare Debian machine
	@bash deploy/need.sh

clean: ## remove what was built
	rm -rf .build
