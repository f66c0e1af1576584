"""The recipe of docs/clusters.md on two processes of this machine: text to tokens, fresh weights, torchrun, fit --init, a packed file.

    python cluster_round_trip.py

Losses are compared with those of `bitnet-trainer fit` over the same batches. Build first:
cargo build --release -p bitnet-trainer -p bitnet-converter -p bitnet-run
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from programs import CORPUS, command

STEPS = 12
ATTENTION = {
    "latent": [],
    "grouped": ["--set", "model.attention=grouped", "--set", "model.n_heads=4", "--set", "model.n_kv_heads=2", "--set", "model.head_dim=32"],
}
# As between one process of PyTorch and the trainer: an int8 or ternary step apart now and then, carried on by the optimiser.
FIRST, GROWTH = 2e-4, 1e-3


def torchrun(*args) -> list[float]:
    """Losses of the steps that a run of two processes takes."""
    train = Path(__file__).parent / "train.py"
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", train]
    # One thread each: what is compared must not depend on the machine.
    done = subprocess.run([*run, *map(str, args)], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode != 0:
        sys.exit(f"torchrun failed:\n{done.stderr}")
    return [json.loads(line)["loss"] for line in done.stdout.splitlines() if line.startswith("{")]


def near(what: str, a: list, b: list) -> bool:
    apart = [abs(a - b) for a, b in zip(a, b, strict=True)]
    good = all(apart <= FIRST + GROWTH * step for step, apart in enumerate(apart))
    print(f"{what}: losses {a[0]:.4f} -> {a[-1]:.4f}, apart {apart[0]:.1e} at first and {max(apart):.1e} at most: {'good' if good else 'TOO FAR'}")
    return good


def round_trip(attention: str, tokens: Path, work: Path) -> bool:
    start, tuned = work / "start", work / "tuned"
    recipe = ["--steps", STEPS, "--batch", 2, "--context", 64, "--lr", "2e-4"]
    fit = ["fit", "--data", tokens, *recipe, "--set", "train.warmup=3", "--set", "train.accumulation=2", "--set", "train.sample_tokens=0"]
    command("bitnet-trainer", *fit, "--out", start, "--preset", "nano", *ATTENTION[attention], "--stop-at", 0)
    ours = work / "ours"
    command("bitnet-trainer", *fit, "--out", ours, "--init", start)
    expected = [json.loads(line)["loss"] for line in (ours / "metrics.jsonl").read_text().splitlines()]
    good = True
    for name, more in (("averaged", []), ("sharded", ["--fsdp"])):
        out = work / name
        common = ["--init", start, "--data", tokens, *recipe, "--warmup", 3, "--out", out, *more]
        losses = torchrun(*common)
        good &= near(f"{attention}, {name}", losses, expected)
        halves = torchrun(*common, "--stop-at", 5) + torchrun(*common, "--resume")
        good &= near(f"{attention}, {name}, resumed", halves, losses)
        print(command("bitnet-trainer", *fit, "--out", tuned, "--init", out, "--overwrite").splitlines()[0])
        for checkpoint in (out, tuned):
            command("bitnet-convert", checkpoint, work / "model.btn", "--verify")
        command("bitnet-run", work / "model.btn", "--selftest")
    return good


def main() -> int:
    good = True
    with tempfile.TemporaryDirectory() as work:
        tokens = Path(work) / "tokens"
        command("bitnet-trainer", "prepare", "--data", CORPUS, "--out", tokens, "--tokenizer", "bpe:512")
        for attention in ATTENTION:
            (Path(work) / attention).mkdir()
            good &= round_trip(attention, tokens, Path(work) / attention)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
