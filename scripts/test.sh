#!/bin/sh
# Runs every test of the workspace. The runner's own summary is the last thing printed, so nothing may follow it.
set -eu

cd "$(dirname "$0")/.."

# nextest does not run examples in documentation. A failure of theirs is kept, and the others run all the same.
documented=0
cargo test --quiet --workspace --all-features --doc || documented=$?

# Options are nextest's: whoever gives some wants some tests of Rust.
python=0
[ $# -gt 0 ] || scripts/python.sh test || python=$?

if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --workspace --all-features --no-fail-fast --config-file scripts/nextest.toml "$@"
else
    echo "cargo-nextest is not installed, so cargo test runs the tests (nextest is quicker: cargo install cargo-nextest)"
    cargo test --workspace --all-features --lib --bins --tests --examples --no-fail-fast "$@"
fi
[ "$documented" = 0 ] || exit "$documented"
exit "$python"
