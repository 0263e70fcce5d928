#!/bin/sh
# Runs the planner demo, on the recorded trace of LLM requests where there is one. Arguments go to the demo.
set -eu

cd "$(dirname "$0")/.."

trace=../shared/data/azure_llm_inference_conv_2023.csv
case " $* " in
*" --trace"*) ;;
*) if [ -f "$trace" ]; then set -- --trace "$trace" "$@"; fi ;;
esac
echo "demo: building, which takes some minutes the first time" >&2
cargo build --quiet --release --example planner --features http
exec cargo run --quiet --release --example planner --features http -- "$@"
