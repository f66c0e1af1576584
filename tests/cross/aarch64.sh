#!/usr/bin/env bash
# AArch64 under emulation, as three processors: the unit tests of the runtime, with and without std; the
# shipped model's self-test on every kernel set, and its text, which must be the text of this
# machine. Then the length of the inner loops.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

# The kernel sets each processor must have, slowest first: a set that does not run fails the check.
cpus=(cortex-a53 cortex-a76 max)
declare -A sets=(
    [cortex-a53]="scalar portable neon"
    [cortex-a76]="scalar portable neon dotprod"
    [max]="scalar portable neon dotprod i8mm"
)

target=aarch64-unknown-linux-gnu
model=models/austen-nano.btn
text_options=(--prompt "It was" --max-tokens 40 --temperature 0.7 --seed 3)

# What the model writes. The program's report of its speed, which says nothing here, is not shown.
write_text() {
    "$@" "$model" "${text_options[@]}" 2>"$cache/report" || { cat "$cache/report" >&2 && false; }
}

# Sets native_text: what the model writes here.
run_native() {
    cargo build -q -p bitnet-run
    native_text="$(write_text "$target_dir/debug/bitnet-run")"
    [ -n "$native_text" ]
}

# Builds the runtime's unit tests with these arguments; sets harness.
build_harness() {
    local flags=(--profile emulated --target "$target" "${build_std[@]}" -p bitnet-runtime --lib --no-run "$@")
    cargo test "${flags[@]}"
    harness="$(cargo test -q "${flags[@]}" --message-format json-render-diagnostics |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')"
    [ -x "$harness" ]
}

# Sets program.
build_program() {
    cargo build --profile emulated --target "$target" "${build_std[@]}" -p bitnet-run
    program="$target_dir/$target/emulated/bitnet-run"
}

emulate() { qemu-aarch64 -L /usr/aarch64-linux-gnu -cpu "$@"; }

# The unit tests, on these sets and no others: check_runtime CPU SETS.
check_runtime() {
    local output
    output="$(KERNEL_SETS="$2" emulate "$1" "$harness" --nocapture 2>&1)" || {
        echo "$output" >&2
        return 1
    }
    grep -E "^(kernel sets|test result)" <<<"$output"
}

# Without std the compiler's target decides, whatever the processor has.
check_without_std() {
    echo "== max: unit tests without std"
    build_harness --no-default-features
    check_runtime max "scalar portable neon"
    echo "== max: unit tests without std, compiled for its features"
    (
        export "$rustflags=${!rustflags:-} -C target-feature=+dotprod,+i8mm"
        build_harness --no-default-features
        check_runtime max "${sets[max]}"
    )
}

check_model() {
    local cpu="$1" set text weights
    for set in ${sets[$cpu]}; do
        echo "== $cpu: the model on $set"
        for weights in mapped t2; do
            emulate "$cpu" "$program" "$model" --selftest --isa "$set" --weights "$weights"
        done
        text="$(write_text emulate "$cpu" "$program" --isa "$set")"
        if [ "$text" != "$native_text" ]; then
            echo "aarch64: as $cpu, $set writes another text: $text" >&2
            exit 1
        fi
    done
}

need aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu libc6-dev-arm64-cross
need aarch64-linux-gnu-objdump binutils-aarch64-linux-gnu
need qemu-aarch64 qemu-user
install_needs
run_native
rust_target "$target"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
rustflags=CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS
build_program
build_harness
for cpu in "${cpus[@]}"; do
    echo "== $cpu: unit tests of the runtime"
    check_runtime "$cpu" "${sets[$cpu]}"
    check_model "$cpu"
done
check_without_std
echo "== inner loops"
cargo build -q --release --target "$target" "${build_std[@]}" -p bitnet-runtime
tests/cross/count_instructions.sh "$target_dir/$target/release/libbitnet_runtime.rlib"
echo "== aarch64: one text, one set of hashes, on ${cpus[*]} and here"
