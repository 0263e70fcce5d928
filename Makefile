.DEFAULT_GOAL := help
.PHONY: help demo cross-pod test bench bench-python docs lint python wheel capi cpython

help: ## Show what make can do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Run the planner demo (pass options as ARGS="--help")
	@scripts/setup.sh build
	@scripts/demo.sh $(ARGS)

cross-pod: ## Run the story of three programs and a nats-server, after getting one (pass options as ARGS="--help")
	@scripts/setup.sh nats
	@cargo run --release --example cross_pod --features nats -- $(ARGS)

test: ## Run all tests, after getting what they need (with nextest's options as ARGS= only those of Rust)
	@scripts/setup.sh test
	@scripts/test.sh $(ARGS)

bench: ## Measure against the bare atomics and other libraries, side by side
	@scripts/setup.sh bench
	@cargo run --release -p metricbus-bench -- $(ARGS)
	@[ -n "$(ARGS)" ] || scripts/python.sh bench

bench-python: ## The Python part of it alone (options go to it as ARGS="--filter inc")
	@scripts/setup.sh bench
	@scripts/python.sh bench $(ARGS)

python: ## Build the Python package in place: PYTHONPATH=python imports it
	@scripts/setup.sh python
	@scripts/python.sh build --release

wheel: ## Build the Python wheel, in target/wheels
	@scripts/setup.sh python
	@scripts/python.sh wheel

cpython: ## Get CPython 3.14, with and without its lock, for `make test` (takes a while; not needed)
	@scripts/setup.sh python
	@scripts/cpython.sh

capi: ## Build the C library, and run its examples in C and C++
	@scripts/setup.sh capi
	@cargo build --release -p metricbus-capi
	@$(MAKE) -C capi/examples run

docs: ## Build the documentation; a broken link or a missing one is an error
	@scripts/setup.sh build
	@RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --workspace --all-features

lint: ## Check formatting, clippy and the build without features
	@scripts/setup.sh build
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features -- -D warnings
	cargo clippy -p metricbus --no-default-features -- -D warnings
