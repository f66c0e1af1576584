#!/usr/bin/env bash
# The project's checks, by name: ./ci.sh fmt | clippy | test | features | nostd | doc | bench-build | fuzz | cross | mpi | all
# What cannot run on this machine is printed as SKIP, never left out silently.
set -euo pipefail
cd "$(dirname "$0")"

fmt() {
    local workspace
    cargo fmt --all --check
    for workspace in tests/no_std tests/fuzz runtime/firmware runtime/wasm; do
        cargo fmt --all --check --manifest-path "$workspace/Cargo.toml"
    done
}

clippy() {
    cargo clippy --workspace --all-targets -- -D warnings
    cargo clippy -p bitnet-formats -p bitnet-runtime --no-default-features -- -D warnings
}

# Unit, integration, documentation and command-line tests of every crate.
test() { cargo test --workspace; }

# The core without std must pass the same tests: square root comes from another library there.
features() {
    cargo test -p bitnet-formats --no-default-features --lib
    cargo test -p bitnet-runtime --no-default-features --lib
}

# The core must build where there is no std at all.
nostd() {
    local target installed
    installed="$(rustc --print sysroot)/lib/rustlib"
    for target in thumbv7em-none-eabihf thumbv7m-none-eabi wasm32-unknown-unknown aarch64-unknown-linux-gnu; do
        if [ -d "$installed/$target/lib" ]; then
            cargo build -p bitnet-runtime --no-default-features --target "$target"
        else
            echo "SKIP nostd $target: not installed (rustup target add $target)"
        fi
    done
}

doc() { RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps; }

bench-build() { cargo bench --workspace --no-run; }

# Ten seconds for each kind of file that strangers hand over, guided by coverage.
fuzz() { tests/fuzz/run.sh 10; }

# Other processors, emulated. Each check installs what it needs, or says what it lacks.
cross() {
    local check
    for check in aarch64 cortex_m wasm; do
        if [ -f "tests/cross/$check.sh" ]; then
            echo "== cross: $check"
            "tests/cross/$check.sh"
        fi
    done
}

# Training by several processes over MPI, against the same by one.
mpi() { tests/mpi.sh; }

all() {
    local step start
    for step in fmt clippy test features nostd doc bench-build fuzz cross mpi; do
        echo "== $step"
        start=$SECONDS
        "$step"
        echo "== $step passed in $((SECONDS - start)) s"
    done
    echo "== all passed in $SECONDS s"
}

for step in "${@:-all}"; do
    case "$step" in
        fmt | clippy | test | features | nostd | doc | bench-build | fuzz | cross | mpi | all) "$step" ;;
        *)
            echo "ci.sh: no check named '$step'; see the first lines of this file" >&2
            exit 2
            ;;
    esac
done
