#!/usr/bin/env bash
# Training over MPI: N ranks of one micro-batch write the very checkpoint that one process writes with
# N, for both kinds of attention, a tied and an untied head, several rounds, and a resumed run. Then
# what must end all ranks at once, with its reason.
source "$(dirname "${BASH_SOURCE[0]}")/cross/setup.sh"

need mpicc libopenmpi-dev
need mpirun openmpi-bin
compgen -G "/usr/lib/llvm-*/lib/libclang*.so*" >/dev/null || lacks libclang libclang-dev
install_needs

cargo clippy -p bitnet-trainer --features mpi --all-targets -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc -p bitnet-trainer --features mpi --no-deps --lib
# As tests are built: what they need of other crates is there.
cargo build --profile test -p bitnet-trainer --features mpi
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
# Other checks build the program without the feature to the same place.
cp "$target_dir/debug/bitnet-trainer" "$work/"
trainer="$work/bitnet-trainer"

corpus=trainer/corpus/austen.txt
small=(--preset nano --tokenizer byte --context 48 --batch 2 --steps 3 --threads 1
    --set model.hidden_size=64 --set model.intermediate_size=96 --set model.n_layers=2
    --set train.sample_tokens=0)

fit() { "$trainer" fit --data "$corpus" "$@"; }

# Ranks on this machine, however few cores it has: ranks N ARGUMENTS.
ranks() {
    local n="$1"
    shift
    mpirun --allow-run-as-root --oversubscribe --bind-to none -n "$n" "$trainer" fit --data "$corpus" "$@"
}

# For `refused`, which runs commands in a shell of their own.
export -f ranks
export trainer corpus

# The two folders hold the same run.
same() {
    local file
    for file in state.safetensors model.safetensors config.json tokenizer.json settings.toml; do
        cmp "$work/$1/$file" "$work/$2/$file"
    done
    # What is measured of time differs; losses, norms and flips do not.
    cmp <(losses "$1") <(losses "$2")
}

losses() { sed 's/"tokens_per_s":[^,]*,//' "$work/$1/metrics.jsonl"; }

# One process and N ranks: compare NAME RANKS MICRO_BATCHES SETTINGS.
compare() {
    local name="$1" n="$2" accumulation="$3"
    shift 3
    local settings=("${small[@]}" --set "train.accumulation=$accumulation" "$@")
    fit --out "$work/$name-alone" "${settings[@]}" 2>"$work/report"
    ranks "$n" --out "$work/$name-ranks" "${settings[@]}" 2>"$work/report"
    same "$name-alone" "$name-ranks"
    echo "$name: $n ranks write what one process writes with $accumulation micro-batches"
}

# A command that must fail with a message: refused MESSAGE COMMAND.
refused() {
    local message="$1" code=0
    shift
    timeout 60 bash -c '"$@"' bash "$@" >"$work/report" 2>&1 || code=$?
    if [ "$code" = 0 ] || [ "$code" = 124 ] || ! grep -qF -- "$message" "$work/report"; then
        cat "$work/report"
        echo "exit code $code; expected another, and: $message" >&2
        return 1
    fi
    echo "refused: $message"
}

compare latent 2 2
compare untied 3 3 --set model.tie_embeddings=false --set model.attention=grouped
compare rounds 2 6 --set train.checkpoint_activations=on

# A run that ranks began goes on alone, and the other way round.
two=("${small[@]}" --set train.accumulation=2)
ranks 2 --out "$work/resumed" "${two[@]}" --stop-at 1 2>"$work/report"
fit --out "$work/resumed" --resume --threads 1 --stop-at 2 2>"$work/report"
ranks 2 --out "$work/resumed" --resume --threads 1 2>"$work/report"
same latent-alone resumed
echo "resumed: alone and by ranks in turn"

refused "train.accumulation is 3" ranks 2 --out "$work/odd" "${small[@]}" --set train.accumulation=3
refused "there is a run in this folder" ranks 2 --out "$work/latent-ranks" "${two[@]}"
# Every second rank is given another seed.
refused "the run is not that of rank 0" mpirun --allow-run-as-root --oversubscribe --bind-to none \
    -n 1 "$trainer" fit --data "$corpus" --out "$work/seeds" "${two[@]}" : \
    -n 1 "$trainer" fit --data "$corpus" --out "$work/seeds" "${two[@]}" --seed 2
# A rate at which the numbers leave the range, on all ranks or on one.
refused "last good checkpoint is kept" ranks 2 --out "$work/infinite" "${two[@]}" --set train.warmup=0 \
    --set train.lr=1e30 --set train.clip=1e30
echo "mpi: all passed"
