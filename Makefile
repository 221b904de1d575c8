# The few commands of the project. `make test` is the gate, here as in CI.

# rustup puts cargo here; a fresh shell may not have it on its path yet.
export PATH := $(HOME)/.cargo/bin:$(PATH)

# Passed on by `make demo ARGS="--for 20s"`.
ARGS ?=

# For how long `make prove` runs the load test; SEEDS of the simulator.
MINUTES ?= 10
SEEDS ?= 100000

# For how long `make fuzz` runs each of its targets.
SECONDS ?= 60

.PHONY: demo test check fmt setup fuzz prove

# Redis of its own, the dispatcher and five sample merchants, in this terminal.
demo: setup
	cargo run --release -- demo $(ARGS)

# Everything that must hold before a change is merged.
test: check
	cargo test --locked

# What needs no test run: the form and the lints.
check: setup
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings

fmt:
	cargo fmt

# Installs what the machine lacks; silent when nothing is missing.
setup:
	@deploy/setup
	@deploy/setup-verifiers

# Looks for inputs that break a promise, guided by coverage; what it finds is kept in tests/fuzz/corpus.
fuzz: setup
	@SECONDS_EACH=$(SECONDS) fuzz/run

# Every scenario with its faults, the simulator, its mutations and the fuzz targets, with one table at the end.
prove: setup
	@MINUTES=$(MINUTES) SEEDS=$(SEEDS) SECONDS_EACH=$(SECONDS) SEED=$(SEED) deploy/prove
