#!/usr/bin/env bash
# Trains the tiny preset on the text that ships with the project, packs it, and lets it write.
# About two minutes of training on two cores. Everything goes to runs/quickstart.
set -euo pipefail
cd "$(dirname "$0")"

run=runs/quickstart
cargo build --release -p bitnet-trainer -p bitnet-converter -p bitnet-run
bin="${CARGO_TARGET_DIR:-target}/release"

"$bin/bitnet-trainer" fit --data trainer/corpus/austen.txt --out "$run" --preset tiny --overwrite
"$bin/bitnet-convert" "$run" "$run/tiny.btn"
"$bin/bitnet-run" "$run/tiny.btn" --prompt "It was" --temperature 0.7 --top-k 40 --seed 1 --max-tokens 120
echo
echo "loss curve: $run/loss.svg    model: $run/tiny.btn    checkpoint: $run" >&2
