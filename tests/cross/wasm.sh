#!/usr/bin/env bash
# WebAssembly, with vectors and without: the kernel harness and the module in an engine, whose logits
# must be those of this machine.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

# The linker is a part of the toolchain in use.
linker="$(rustc --print sysroot)/lib/rustlib/$(rustc --print host-tuple)/bin/rust-lld"

# harness NAME FEATURES: every kernel set equals scalar, up to this one.
harness() {
    local name="$1" std=() program
    if [ ${#build_std[@]} != 0 ]; then
        std=(-Z build-std=std,panic_abort,test)
    fi
    program="$(cd runtime/wasm && RUSTFLAGS="$2" cargo test -q --profile harness "${std[@]}" --target "$target" \
        --target-dir "$target_dir/harness-$name" -p bitnet-wasm-harness --no-run --message-format json-render-diagnostics |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')"
    "$engine_dir/release/run-harness" "$program" "$name"
}

engine_dir="$target_dir/wasm-engine"
(cd runtime/wasm && cargo build -q --release -p bitnet-wasm-engine --target-dir "$engine_dir")

target=wasm32-unknown-unknown
# In a shell of its own: this machine's programs go on being built by the compiler in use.
(
    rust_target "$target"
    export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER="${CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER:-$linker}"
    CARGO_TARGET_DIR="$target_dir/wasm" runtime/wasm/build.sh "${build_std[@]}"
    harness portable ""
    harness simd128 "-C target-feature=+simd128"
)

echo "== the module in an engine"
(cd runtime/wasm && cargo test -q --release --target-dir "$engine_dir" -p bitnet-wasm -p bitnet-wasm-engine)
