# The public face of the project. Every target installs what it needs, says what it does, and can be repeated.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
.SILENT:
MAKEFLAGS += --no-print-directory

CARGO := . scripts/env.sh && cargo
E2E := . scripts/env.sh && target/release/fairlead-e2e

.PHONY: help quickstart test test-unit test-e2e build verify fuzz bench-engine bench-gateway bench-rollout bench-cluster generate cluster-up cluster-down images install

help: ## Show this list
	grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | column -ts $$'\t'

quickstart: can-run build ## From a fresh machine to an answered question on a real Kubernetes; safe to repeat
	$(E2E) quickstart

test: verify test-unit test-e2e ## Every test: units, mocked API, processes on loopback, end to end on the real cluster

test-unit: setup ## Tests that need no cluster
	scripts/setup.sh minilm >/dev/null
	(cd inference-pod/models/training && python3 -m unittest --quiet test_generator test_card)
	$(CARGO) build --workspace --bins
	$(CARGO) test --workspace --no-fail-fast

test-e2e: can-run build ## End-to-end tests on the local cluster, or on KUBECONFIG's
	$(E2E) test

build: setup ## Release binaries: target/release/fairlead-{operator,gateway,inference,rag,e2e} and kubectl-fairlead
	$(CARGO) build --release --workspace --bins --exclude fairlead-model-copy --exclude fairlead-gateway
	$(CARGO) build --profile gateway --package fairlead-gateway --bins
	install target/gateway/fairlead-gateway target/release/
	# Static, because it runs inside images that hold a model and nothing else.
	$(CARGO) rustc --release --package fairlead-model-copy -- -C target-feature=+crt-static

.PHONY: can-run setup e2e-tool
# Before a long build: a machine that cannot run the local cluster hears of it at once. `fairlead-e2e` looks closer.
can-run:
	if [ -z "$${KUBECONFIG:-}" ]; then
	  [ "$$(uname -s)" = Linux ] || { echo "error: the local cluster needs Linux; set KUBECONFIG to use another cluster" >&2; exit 1; }
	  [ "$$(id -u)" -eq 0 ] || { echo "error: the local cluster needs root; run as root, or set KUBECONFIG to use another cluster" >&2; exit 1; }
	fi
	command -v go >/dev/null || { echo "error: go is missing: the cluster's programs and kubectl are built with it; install Go 1.26 or newer" >&2; exit 1; }

setup:
	scripts/setup.sh build

# The cluster's own tool alone: enough to start a cluster, to stop it and to install charts.
e2e-tool: setup
	$(CARGO) build --release --package fairlead-e2e --bins

verify: setup ## Format and lints (a test says when generated files are stale)
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- --deny warnings
	# Outside the workspace, and still to be kept building.
	$(CARGO) clippy --locked --manifest-path fuzz/Cargo.toml --target-dir target/fuzz --bins -- --deny warnings

fuzz: setup ## Throw random bytes at every parser, SECONDS=60 each
	scripts/fuzz.sh $(or $(SECONDS),60)

generate: setup ## Write the CRD YAML and docs/reference/api.md from the types
	$(CARGO) run --quiet --package fairlead-crds --bin fairlead-crdgen

cluster-up: e2e-tool ## Start the local cluster (a second call repairs what has died)
	$(E2E) up

cluster-down: e2e-tool ## Stop the local cluster and leave nothing behind
	$(E2E) down

images: build ## Build the images and load them into the cluster (or push them to IMAGE_REGISTRY)
	$(E2E) images

install: e2e-tool ## Install or upgrade the charts
	$(E2E) install

bench-rollout: setup ## Simulate rollouts: wrong rollbacks, and the requests it takes to find a worse version
	$(CARGO) run --release --package fairlead-rollout --example simulate docs/benchmarks/rollout.json

bench-cluster: can-run build ## Measure changes, splits and rollbacks on the local cluster, or on KUBECONFIG's
	export FAIRLEAD_WRITE_BENCHMARKS=1
	$(E2E) test changes:: rollout:: evaluation_gate::

bench-engine: setup ## Measure our engine beside transformers and llama.cpp on this CPU; QUICK=1 for a first look
	$(CARGO) build --release --package fairlead-inference --bins
	. scripts/env.sh
	# llama.cpp is compiled for this processor, which takes some minutes the first time.
	python="$$(scripts/setup.sh python bench/engine/requirements.txt bench-engine)/bin/python"
	"$$python" bench/engine/bench.py target/release/fairlead-inference "$$FAIRLEAD_CACHE/bench" docs/benchmarks/engine.json

bench-gateway: setup ## Measure our gateway beside nginx, sglang-router and LiteLLM; QUICK=1 for a first look
	$(CARGO) build --profile gateway --package fairlead-gateway --bins
	$(CARGO) build --release --package fairlead-bench-load --bins
	. scripts/env.sh
	nginx="$$(scripts/setup.sh nginx)"
	python="$$(scripts/setup.sh python bench/gateway/requirements.txt bench-gateway)/bin/python"
	"$$python" bench/gateway/bench.py target/gateway/fairlead-gateway target/release/fairlead-bench-load "$$nginx" docs/benchmarks/gateway.json
