.DEFAULT_GOAL := help
.PHONY: help demo cross-pod test bench docs lint

help: ## Show what make can do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Run the planner demo (pass options as ARGS="--help")
	@scripts/setup.sh build
	@scripts/demo.sh $(ARGS)

cross-pod: ## Run the story of three programs and a nats-server, after getting one (pass options as ARGS="--help")
	@scripts/setup.sh nats
	@cargo run --release --example cross_pod --features nats -- $(ARGS)

test: ## Run all tests, after getting what they need (pass nextest's options as ARGS=)
	@scripts/setup.sh test
	@scripts/test.sh $(ARGS)

bench: ## Measure against the bare atomics and other libraries, side by side
	@scripts/setup.sh nats
	@cargo run --release -p metricbus-bench -- $(ARGS)

docs: ## Build the documentation; a broken link or a missing one is an error
	@scripts/setup.sh build
	@RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --workspace --all-features

lint: ## Check formatting, clippy and the build without features
	@scripts/setup.sh build
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features -- -D warnings
	cargo clippy -p metricbus --no-default-features -- -D warnings
