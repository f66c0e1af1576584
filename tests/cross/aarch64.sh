#!/usr/bin/env bash
# AArch64 under emulation, as three processors: the kernel harness, the shipped model's self-test,
# and its text, which must be the text of this machine.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

# The kernel sets each processor must have, slowest first: a set that does not run fails the check.
cpus=(cortex-a53 cortex-a76 max)
declare -A sets=(
    [cortex-a53]="scalar portable"
    [cortex-a76]="scalar portable"
    [max]="scalar portable"
)

target=aarch64-unknown-linux-gnu
model=models/austen-nano.btn
text_options=(--prompt "It was" --max-tokens 40 --temperature 0.7 --seed 3)

# Sets native_text: what the model writes here.
run_native() {
    cargo build -q -p bitnet-run
    native_text="$("$target_dir/debug/bitnet-run" "$model" "${text_options[@]}")"
    [ -n "$native_text" ]
}

# Sets harness and program.
build() {
    local flags=(--profile emulated --target "$target" "${build_std[@]}")
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
    cargo build "${flags[@]}" -p bitnet-run
    cargo test "${flags[@]}" -p bitnet-runtime --lib --no-run
    harness="$(cargo test -q "${flags[@]}" -p bitnet-runtime --lib --no-run --message-format json |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')"
    program="$target_dir/$target/emulated/bitnet-run"
    [ -x "$harness" ] && [ -x "$program" ]
}

emulate() { qemu-aarch64 -L /usr/aarch64-linux-gnu -cpu "$@"; }

check_cpu() {
    local cpu="$1" set text
    echo "== $cpu: kernel harness"
    # With --nocapture it prints the sets that ran.
    KERNEL_SETS="${sets[$cpu]}" emulate "$cpu" "$harness" kernels --nocapture
    for set in ${sets[$cpu]}; do
        echo "== $cpu: the model on $set"
        for weights in mapped t2; do
            emulate "$cpu" "$program" "$model" --selftest --isa "$set" --weights "$weights"
        done
        text="$(emulate "$cpu" "$program" "$model" "${text_options[@]}" --isa "$set")"
        if [ "$text" != "$native_text" ]; then
            echo "aarch64: as $cpu, $set writes another text: $text" >&2
            exit 1
        fi
    done
}

need aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu libc6-dev-arm64-cross
need qemu-aarch64 qemu-user
install_needs
run_native
rust_target "$target"
build
for cpu in "${cpus[@]}"; do
    check_cpu "$cpu"
done
echo "== aarch64: one text, one set of hashes, on ${cpus[*]} and here"
