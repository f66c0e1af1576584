#!/usr/bin/env bash
# Builds the module twice, with vectors and without, and puts both beside the page:
#
#     rustup target add wasm32-unknown-unknown
#     runtime/wasm/build.sh
#     python3 -m http.server -d runtime/wasm/www
#
# More arguments go to cargo.
set -euo pipefail
cd "$(dirname "$0")"

# 192 KiB of stack, of which decoding a packed file takes 74 kB, before the data: a stack that overflows
# traps instead of running into it.
flags="-C link-arg=-zstack-size=196608"
target_dir="${CARGO_TARGET_DIR:-target}"

build() {
    local name="$1" features="$2"
    shift 2
    RUSTFLAGS="$flags $features" cargo build --release --lib -p bitnet-wasm \
        --target wasm32-unknown-unknown --target-dir "$target_dir/$name" "$@"
    cp "$target_dir/$name/wasm32-unknown-unknown/release/bitnet_wasm.wasm" "www/$name.wasm"
    echo "www/$name.wasm: $(stat -c %s "www/$name.wasm") bytes"
}

mkdir -p www
build bitnet "" "$@"
build bitnet-simd "-C target-feature=+simd128" "$@"
cp ../../models/austen-nano.btn www/
