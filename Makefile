# The few commands of the project. `make test` is the gate, here as in CI.

# rustup puts cargo here; a fresh shell may not have it on its path yet.
export PATH := $(HOME)/.cargo/bin:$(PATH)

# Passed on, as in `make demo ARGS="--for 20s"` or `make bench ARGS="--rounds 5"`.
ARGS ?=

# For how long `make prove` runs the load test; SEEDS of the simulator; EXAMPLES of each call of the payment intents.
MINUTES ?= 10
SEEDS ?= 100000
EXAMPLES ?= 200

# Which parts `make operate` does; all of them, if none is named.
PARTS ?=

# For how long `make fuzz` runs each of its targets.
SECONDS ?= 60

.PHONY: demo screenshots bench bench-deliveries bench-ingest bench-intents bench-scale bench-history test test-waiting test-working check fmt tools setup fuzz prove operate

# Redis of its own, the dispatcher and five sample merchants, in this terminal.
demo: tools
	@[ -e target/release/herald ] || echo "demo: building Herald, which takes some minutes the first time" >&2
	@cargo run --quiet --release --locked -- demo $(ARGS)

# What Herald costs and how fast it is, beside a bare loop, then what payment intents cost; ARGS="--write docs/performance.md"
# keeps the tables.
bench: bench-deliveries bench-intents

# Either alone, with ARGS of its own, such as "--eager-receiver" for deliveries or "--only many --scale 100000" for intents.
bench-deliveries: tools
	cargo bench --locked --bench performance -- $(ARGS)
bench-intents: tools
	cargo bench --locked --bench intents -- $(ARGS)

# Whether a delivery costs the same when a million lies behind; who feels it when others hang or die. Takes 20 minutes,
# with ARGS="--scale 50000" five.
bench-scale: tools
	cargo bench --locked --bench scale -- $(ARGS)

# What it costs to publish over HTTP, beside a bare XADD, and whether probes are answered meanwhile.
bench-ingest: tools
	cargo bench --locked --bench ingest -- $(ARGS)

# What the history of deliveries costs and how fast it answers: two million rows take a minute or two, ARGS="--rows 50000000" half
# an hour or more and 16 GB.
bench-history: tools
	cargo bench --locked --bench history -- $(ARGS)

# Everything that must hold before a change is merged. Tests wait for servers more than they compute, so there are more of them at
# a time than processors.
export RUST_TEST_THREADS ?= $(shell echo $$((2 * $$(nproc))))
test: setup check
	cargo test --locked --no-run
	@$(MAKE) --no-print-directory -j2 test-waiting test-working
	cargo test --locked --doc

# Those that mostly wait run beside those that compute, so that both take about as long; which are which was measured.
TESTS := $(sort $(basename $(notdir $(wildcard tests/*.rs))) $(patsubst tests/%/main.rs,%,$(wildcard tests/*/main.rs)))
WAITING := demo edges intents loadtest_load nginx operate ops prove receivers sender setup
test-waiting:
	cargo test --locked $(WAITING:%=--test %)
test-working:
	cargo test --locked --lib --bins $(patsubst %,--test %,$(filter-out $(WAITING),$(TESTS)))

# The pictures in README.md, of a Herald with something to show.
screenshots: setup
	PICTURES=docs cargo test --locked --test api pictures_for_the_readme -- --ignored

# What needs no test run: the form, the lints and the dependencies. Also of a service without the demo and the load test, and
# of what a receiver gets.
check: tools
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --no-default-features --features dispatcher -- -D warnings
	cargo clippy --locked --no-default-features -- -D warnings
	@deploy/setup-checks
	deploy/check-dependencies

fmt:
	cargo fmt

# Installs what the machine lacks; silent when nothing is missing. `tools` is enough to run Herald, `setup` to test it.
tools:
	@deploy/setup
setup: tools
	@deploy/setup-verifiers
	@deploy/setup-operate quick

# Looks for inputs that break a promise, guided by coverage; what it finds is kept in tests/fuzz/corpus.
fuzz: tools
	@SECONDS_EACH=$(SECONDS) tests/fuzz/run

# What is in deploy/, at work: every alert caused for real, and the dashboard's queries asked, before a real Prometheus; all that the
# judges read; the Debian package and its unit in a machine that boots, the image in a container, what compose describes, and every
# drill of docs/operations.md; a release. With one table at the end. What cannot be had on this machine is named there, and what needs
# it is left out. PARTS="image drill-rollback" does these alone.
operate: tools
	@deploy/operate $(PARTS)

# Every scenario with its faults, a real nginx, the receivers in every language, the payment intents against their description,
# the simulator, its mutations and the fuzz targets, with one table at the end.
prove: setup
	@deploy/setup-runtimes
	@MINUTES=$(MINUTES) SEEDS=$(SEEDS) EXAMPLES=$(EXAMPLES) SECONDS_EACH=$(SECONDS) SEED=$(SEED) deploy/prove
