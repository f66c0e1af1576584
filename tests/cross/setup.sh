# What the cross checks share: finding tools and compilers, or installing them. A check sources this
# file, says what it needs, and runs:
#
#     source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"    # the working directory is now the repository
#     need qemu-aarch64 qemu-user                         # a command, and the Debian packages it comes with
#     need_file /usr/share/some/data some-package         # the same for a file
#     install_needs                                       # one apt-get for all that is missing
#     rust_target thumbv7m-none-eabi                      # a compiler and a standard library for it
#     cargo build --target thumbv7m-none-eabi "${build_std[@]}" ...
#     "$target_dir/thumbv7m-none-eabi/debug/..."          # rust_target may have moved the folder
#
# A warning of the compiler fails a check, also one that is only repeated.
#
# A tool that is missing is installed where this is Debian (or made from it) and the user is root or
# may use sudo without a password. Elsewhere the check is skipped with a line that begins with SKIP:
# with success on other systems, and with failure on Debian, where the tool can be had.
#
# Nothing is copied into system folders: what apt does not install is kept under $cache.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

check="$(basename "$0" .sh)"
# Where cargo writes, and what is kept from one run to the next.
target_dir="$(realpath -m "${CARGO_TARGET_DIR:-target}")"
cache="$target_dir/cross"
mkdir -p "$cache"
# More arguments for cargo; rust_target sets them.
build_std=()
missing_tools=()
missing_packages=()

# Cargo, here and in scripts that a check calls. It prints warnings on the error stream.
cargo() {
    { command cargo --color never "$@" 2>&1 >&3 | refuse_warnings; } 3>&1
}

# But for one that there is no way around: the float vectors of Cortex-M55 are left out by a feature that
# only the code generator has a name for.
refuse_warnings() {
    local line found=0 known='unknown and unstable feature specified for `-Ctarget-feature`: `mve.fp`'
    while IFS= read -r line; do
        echo "$line" >&2
        [[ "$line" != warning* || "$line" == *"$known" ]] || found=1
    done
    [ "$found" = 0 ] || echo "$check: warnings are errors here" >&2
    return "$found"
}
export check
export -f cargo refuse_warnings

is_debian() { [ -f /etc/debian_version ] && command -v apt-get >/dev/null; }

# Ends the check: with success where the tool cannot be had, with failure where it can.
skip() {
    echo "SKIP $check: $1"
    if is_debian; then
        echo "$check: on this system that is a failure; ${2:-install what is missing}" >&2
        exit 1
    fi
    exit 0
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo -n "$@"
    else
        return 1
    fi
}

# need COMMAND PACKAGE...
need() {
    command -v "$1" >/dev/null || lacks "$@"
}

# need_file PATH PACKAGE...
need_file() {
    [ -e "$1" ] || lacks "$@"
}

lacks() {
    missing_tools+=("$1")
    missing_packages+=("${@:2}")
}

# Installs what the needs so far lack.
install_needs() {
    local tools="${missing_tools[*]}" packages="${missing_packages[*]}"
    [ -n "$tools" ] || return 0
    is_debian || skip "missing: $tools"
    echo "$check: installing $packages"
    {
        as_root apt-get update -q &&
            as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
                -o DPkg::Lock::Timeout=600 "${missing_packages[@]}"
    } || skip "missing: $tools" "as root: apt-get install $packages"
    missing_tools=()
    missing_packages=()
}

# Makes `cargo build --target TARGET` work: with the toolchain in use, with what rustup can add to it,
# or with Debian's compiler.
rust_target() {
    local target="$1"
    build_std=()
    [ -d "$(rustc --print sysroot)/lib/rustlib/$target/lib" ] && return
    if command -v rustup >/dev/null && timeout 300 rustup target add "$target"; then
        return
    fi
    is_debian || skip "no Rust for $target: rustup target add $target"
    debian_rust "$target"
}

# Debian's newest compiler comes as rustc-web, with the source of the library. Output goes to a
# folder of its own, so that two compilers do not undo each other's work.
debian_rust() {
    local target="$1"
    need /usr/bin/rustc rustc-web
    need_file /usr/lib/rustlib/src/rust/library/Cargo.toml rust-web-src
    install_needs
    target_dir="$cache/debian-rust"
    export RUSTC=/usr/bin/rustc CARGO_TARGET_DIR="$target_dir"
    case "$target" in
        aarch64-unknown-linux-gnu) debian_std arm64 "$target" ;;
        armv7-unknown-linux-gnueabihf) debian_std armhf "$target" ;;
        *)
            export RUSTC_BOOTSTRAP=1
            build_std=(-Z build-std=core,alloc)
            ;;
    esac
}

# Unpacks the standard library that Debian built for another of its architectures, and points the
# compiler to it.
debian_std() {
    local arch="$1" target="$2" sysroot="$cache/sysroot" package=libstd-rust-web-dev version
    version="$(dpkg-query -W -f '${Version}' "$package")"
    if [ ! -d "$sysroot/lib/rustlib/$target/lib" ]; then
        download_deb "$arch" "$package=$version"
        mkdir -p "$sysroot/lib/rustlib"
        cp -r "$cache/unpacked/usr/lib/rustlib/$target" "$sysroot/lib/rustlib/"
        rm -r "$cache/unpacked"
    fi
    local flags="CARGO_TARGET_${target^^}_RUSTFLAGS"
    export "${flags//-/_}=--sysroot $sysroot"
}

# Unpacks a package of another architecture to $cache/unpacked. Apt gets lists and folders of its
# own, so that neither root nor a change to the system is needed.
download_deb() {
    local arch="$1" package="$2" apt=(apt-get -q)
    mkdir -p "$cache/apt/lists/partial" "$cache/apt/archives/partial" "$cache/unpacked"
    apt+=(-o "APT::Architecture=$arch" -o "APT::Architectures=$arch" -o APT::Sandbox::User=root
        -o Dir::State::Lists="$cache/apt/lists" -o Dir::State::status=/dev/null
        -o Dir::Cache="$cache/apt")
    "${apt[@]}" update
    (cd "$cache/apt" && "${apt[@]}" download "$package" && dpkg -x ./*.deb "$cache/unpacked")
    rm -r "$cache/apt"
}
