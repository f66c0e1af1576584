#!/usr/bin/env bash
# WebAssembly, with vectors and without: the kernel harness, and the module in an engine, whose logits
# must be those of this machine; then the page in headless Chromium, which must write its text.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

need chromium chromium
need chromedriver chromium-driver
need python3 python3
install_needs

model=models/austen-nano.btn
prompt="It was"
tokens=80
temperature=0.7
top_k=40
seed=3

# The linker is a part of the toolchain in use.
linker="$(rustc --print sysroot)/lib/rustlib/$(rustc --print host-tuple)/bin/rust-lld"

# Sets native_text: what the model writes here.
run_native() {
    cargo build -q -p bitnet-run
    native_text="$("$target_dir/debug/bitnet-run" "$model" --prompt "$prompt" --max-tokens "$tokens" \
        --temperature "$temperature" --top-k "$top_k" --seed "$seed" 2>"$cache/report")" || {
        cat "$cache/report" >&2
        return 1
    }
    [ -n "$native_text" ]
}

# The page with the kernels of this name writes native_text: check_page KERNELS VECTORS.
check_page() {
    echo "== the page in Chromium, $1"
    python3 tests/cross/browser.py --page runtime/wasm/www --query "vectors=$2" --kernels "$1" \
        --prompt "$prompt" --tokens "$tokens" --temperature "$temperature" --top-k "$top_k" --seed "$seed" \
        --expect "$native_text" --file "$model" --screenshot "$cache/page-$1.png"
}

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

run_native
check_page simd128 1
check_page portable 0
