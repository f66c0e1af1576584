#!/usr/bin/env bash
# 32-bit Arm under emulation. The unit tests of the runtime, kernel harness included, as a program
# of 32-bit Linux; then Cortex-M boards: kernels, the shipped model's self-test with four work budgets,
# its text, which must be the text of this machine, and what all of it takes. Last, a model of
# 0.7 B parameters in the external memory of a Cortex-M55 board.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

# Board, target, further compiler flags. Floats stay scalar on the M55: vector floats of its kind
# flush subnormals, which NUMERICS.md does not allow.
boards=(
    "netduinoplus2 thumbv7em-none-eabihf"
    "mps2-an385 thumbv7m-none-eabi"
    "mps2-an386 thumbv7em-none-eabihf"
    "mps2-an500 thumbv7em-none-eabihf"
    "mps2-an505 thumbv8m.main-none-eabihf -Ctarget-cpu=cortex-m33"
    "mps3-an547 thumbv8m.main-none-eabihf -Ctarget-cpu=cortex-m55 -Ctarget-feature=-mve.fp"
)

model=models/austen-nano.btn
prompt="It was"
tokens=40
firmware=runtime/firmware
# Budgets of this check, from what DESIGN and the hardware allow.
max_text_bytes=$((48 << 10))
max_ram_bytes=$((128 << 10))
max_dsp_hundredths=240

fail() {
    echo "cortex_m: $1" >&2
    exit 1
}

# A number or a list from bitnet-run's JSON: json NAME.
json() { python3 -c 'import json,sys; v = json.load(sys.stdin)[sys.argv[1]]; print(",".join(map(str, v)) if isinstance(v, list) else v)' "$1"; }

# Sets prompt_ids, native_text and native_hash: what this machine computes.
run_native() {
    local result
    cargo build -q -p bitnet-run -p bitnet-converter
    native="$target_dir/debug/bitnet-run"
    convert="$target_dir/debug/bitnet-convert"
    result="$("$native" "$model" --prompt "$prompt" --max-tokens "$tokens" --json)"
    prompt_ids="$(json prompt_ids <<<"$result")"
    native_text="$(json text <<<"$result")"
    native_hash="$("$native" "$model" --selftest --json | json logits_hash)"
}

# The runtime's tests in 32 bits, on the kernel sets of a processor with DSP instructions.
unit_tests() {
    local target=armv7-unknown-linux-gnueabihf harness
    (
        rust_target "$target"
        export CARGO_TARGET_ARMV7_UNKNOWN_LINUX_GNUEABIHF_LINKER=arm-linux-gnueabihf-gcc
        flags=(--target "$target" "${build_std[@]}" -p bitnet-runtime --lib --no-run)
        cargo test "${flags[@]}"
        harness="$(cargo test -q "${flags[@]}" --message-format json-render-diagnostics |
            sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')"
        echo "== 32-bit Linux: the runtime's unit tests"
        KERNEL_SETS="scalar portable swar dsp" \
            qemu-arm -L /usr/arm-linux-gnueabihf -cpu cortex-a15 "$harness"
    )
}

# Builds a program of the firmware for the board; sets elf.
build() {
    local board="$1" target="$2" program="$3"
    rust_target "$target"
    local flags="${target^^}_RUSTFLAGS" linker="${target^^}_LINKER"
    flags="CARGO_TARGET_${flags//[-.]/_}" linker="CARGO_TARGET_${linker//[-.]/_}"
    (
        # Debian's compiler comes without a linker for such targets; every other one brings it.
        [ -z "${RUSTC:-}" ] || export "$linker=$(bare_linker)"
        export BITNET_BOARD="$board" "$flags=${*:4}" CARGO_TARGET_DIR="$target_dir"
        cd "$firmware"
        cargo build -q --release --locked --target "$target" "${build_std[@]}" --bin "$program"
    )
    elf="$target_dir/$target/release/$program"
}

# An lld: of the toolchain in use, or of Debian.
bare_linker() {
    local lld
    lld="$(env -u RUSTC rustc --print sysroot 2>/dev/null)/lib/rustlib/x86_64-unknown-linux-gnu/bin/rust-lld"
    [ -x "$lld" ] || lld="$(command -v ld.lld || command -v rust-lld)"
    echo "$lld"
}

# Runs the program on the board: one instruction is one nanosecond. Arguments become its command line.
emulate() {
    local board="$1" arguments="enable=on,target=native,arg=bitnet" word
    # QEMU wants commas doubled.
    for word in "${@:2}"; do arguments+=",arg=${word//,/,,}"; done
    timeout 900 qemu-system-arm -M "$board" -icount shift=0 -nographic -monitor none \
        -serial null -semihosting-config "$arguments" "${devices[@]}" -kernel "$elf"
}

# What follows "# NAME " in the board's output.
figure() { sed -n "s/^# $1 //p" <<<"$output"; }

check_kernels() {
    echo "== $board: kernels"
    build "$board" "$target" kernels $flags
    kernel_output="$(emulate "$board")" || fail "$board: $kernel_output"
    echo "$kernel_output"
}

check_model() {
    echo "== $board: the shipped model"
    build "$board" "$target" generate $flags
    output="$(emulate "$board" "ids=$prompt_ids" "tokens=$tokens")" || fail "$board: $output"
    echo "$output"
    local text="${output%%$'\n# '*}"
    [ "$text" = "$native_text" ] || fail "$board writes another text"
    local hashes
    hashes="$(figure "self-test" | cut -d' ' -f1 | sort -u)"
    [ "$hashes" = "$native_hash" ] || fail "$board has other logits: $hashes, not $native_hash"
}

# The proof of `no_std`: a library with a panic handler of its own.
check_no_std() {
    local target
    for target in thumbv7m-none-eabi thumbv7em-none-eabihf thumbv8m.main-none-eabihf wasm32-unknown-unknown; do
        echo "== no_std: $target"
        (
            rust_target "$target"
            export CARGO_TARGET_DIR="$target_dir"
            cd tests/no_std
            cargo build -q --release --locked --target "$target" "${build_std[@]/core,alloc/core}"
        )
    done
}

# Bytes of code of the runtime and of the reader of files.
code_bytes() {
    llvm-nm --print-size --radix=d --demangle "$elf" |
        awk '$3 ~ /[tT]/ && /bitnet_(runtime|formats)/ { sum += $2 } END { print sum }'
}

# netduinoplus2 is a real part with real limits; mps2-an386 is measured because its clock is slow
# enough for exact counts.
check_marks() {
    local ram code hundredths
    case "$board" in
        netduinoplus2)
            ram="$(sed -n 's/^# memory: .*; \([0-9]*\) B of .*/\1/p' <<<"$output")"
            [ "$ram" -lt "$max_ram_bytes" ] || fail "$board uses $ram B of memory"
            code="$(code_bytes)"
            echo "# code of runtime and formats: $code B"
            [ "$code" -lt "$max_text_bytes" ] || fail "the runtime's code has grown to $code B"
            ;;
        mps2-an386)
            hundredths="$(sed -n 's/^# dsp t5: \([0-9]*\)\.\([0-9]*\) .*/\1\2/p' <<<"$kernel_output")"
            [ "$hundredths" -le "$max_dsp_hundredths" ] || fail "dsp takes more: $kernel_output"
            ;;
    esac
}

# 0.7 B parameters of random weights in 2 GiB of external memory: the first self-test vector and the
# greedy ids of this machine.
check_large() {
    local file="$cache/bitnet-700m.btn" expected found
    echo "== mps3-an547: bitnet-700m in external memory"
    mkdir -p "$cache"
    [ -f "$file" ] || "$convert" --dummy bitnet-700m "$file"
    expected="$("$native" "$file" --ids 5,17 --max-tokens 2 --json | json ids)"
    devices=(-device "loader,file=$file,addr=0x60000000,force-raw=on")
    build mps3-an547 thumbv8m.main-none-eabihf loaded -Ctarget-cpu=cortex-m55 -Ctarget-feature=-mve.fp
    output="$(emulate mps3-an547 "bytes=$(stat -c %s "$file")" ids=5,17 tokens=2)" || fail "$output"
    devices=()
    echo "$output"
    found="$(tail -n +1 <<<"$output" | grep -v '^#' | tr ' ' '\n' | grep . | paste -sd,)"
    [ "$found" = "$expected" ] || fail "bitnet-700m gives $found, not $expected"
}

need python3 python3
need qemu-system-arm qemu-system-arm
need qemu-arm qemu-user
need arm-linux-gnueabihf-gcc gcc-arm-linux-gnueabihf libc6-dev-armhf-cross
need llvm-nm llvm
install_needs
devices=()
mkdir -p "$cache"
run_native
unit_tests
check_no_std
for line in "${boards[@]}"; do
    read -r board target flags <<<"$line"
    check_kernels
    check_model
    check_marks
done
check_large
echo "== cortex_m: one text, one set of hashes, on ${#boards[@]} boards and here"
