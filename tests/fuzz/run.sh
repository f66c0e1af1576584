#!/usr/bin/env bash
# Fuzzes what reads files from strangers, guided by coverage: tests/fuzz/run.sh [SECONDS] [TARGET ...]
#
# The instrumentation is a pass of LLVM that a stable compiler has as well. What the nightly one has on top, the
# address sanitizer, matters little here: a panic, a hang or too much memory ends a run, and `unsafe` is
# behind checks that the same inputs reach.
source "$(dirname "${BASH_SOURCE[0]}")/../cross/setup.sh"
check=fuzz
need g++ g++
install_needs

seconds="${1:-10}"
targets=("${@:2}")
[ ${#targets[@]} != 0 ] || targets=(btn safetensors gguf config_json tokenizer_json)

host="$(rustc --print host-tuple)"
home="$target_dir/fuzz"
corpus="$home/corpus"

# For the host by name: build scripts are then not instrumented.
build() {
    local flags="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
    flags+=" -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
    flags+=" -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"
    RUSTFLAGS="$flags" cargo build -q --release --manifest-path tests/fuzz/Cargo.toml \
        --target "$host" --target-dir "$home"
}

# Good files of each kind, from what the repository has.
seed() {
    local export="$home/export" file
    mkdir -p "$corpus"/{btn,safetensors,gguf,config_json,tokenizer_json}
    rm -rf "$export"
    cargo run -q -p bitnet-converter -- models/austen-nano.btn "$export"
    cp models/austen-nano.btn "$corpus/btn/"
    cp tests/fixtures/llama_packed_rmsnorm/model.safetensors "$corpus/safetensors/"
    { cat "$export/tokenizer.json" && printf '\0It was 12 o’clock'; } >"$corpus/tokenizer_json/nano"
    for file in tests/fixtures/*/config*.json "$export/config.json"; do
        cp "$file" "$corpus/config_json/$(basename "$(dirname "$file")")-$(basename "$file")"
    done
    for file in tests/fixtures/gguf/*/model.gguf; do
        cp "$file" "$corpus/gguf/$(basename "$(dirname "$file")")"
    done
}

# fuzz TARGET: inputs found go to its corpus; one that ends it, beside the corpora.
fuzz() {
    echo "== fuzz: $1, $seconds s"
    "$home/$host/release/$1" "$corpus/$1" -artifact_prefix="$home/$1-" -max_total_time="$seconds" \
        -timeout=10 -rss_limit_mb=512 -max_len=600000 -verbosity=0 -print_final_stats=1 2>"$home/$1.log" ||
        { cat "$home/$1.log" >&2 && return 1; }
    grep number_of_executed_units "$home/$1.log"
}

build
seed
for target in "${targets[@]}"; do
    fuzz "$target"
done
