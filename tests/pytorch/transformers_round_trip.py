"""From `bitnet-trainer fit` to the transformers library and back: equal logits, equal tokens.

    python transformers_round_trip.py            trains, packs and runs small grouped-query models with the release binaries, with
                                                 sub-norms (BitNet), without (Llama), and with norms inside the linears, loads them in transformers, compares;
                                                 then the other way round by save_pretrained
    python transformers_round_trip.py --write    also replaces tests/fixtures/transformers, which the normal tests read

Build first: cargo build --release -p bitnet-trainer -p bitnet-converter -p bitnet-run
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

# Its quantisers are marked for compilation, which needs a C++ compiler and may change the last bit.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitNetForCausalLM, LlamaForCausalLM

from programs import CORPUS, ROOT, command

FIXTURE = ROOT / "tests" / "fixtures" / "transformers"
LENGTHS = (1, 7, 33, 64)
# Where no activation lies near a rounding boundary; and where one crosses it, one int8 step that later positions carry on.
CLOSE, FAR, FAR_MEAN, MARGIN = 1e-4, 0.5, 0.02, 0.1
SHAPE = ["model.attention=grouped", "model.hidden_size=48", "model.n_layers=2", "model.n_heads=4", "model.n_kv_heads=2"]
SHAPE += ["model.head_dim=12", "model.intermediate_size=88", "model.max_seq_len=128"]
LLAMA = ["model.sub_norms=false", "model.activation=silu", "model.tie_embeddings=false", "model.rope.theta=500000"]
IN_LINEARS = ["model.norms.in_linear=1e-6"]


def fit(out: Path, *more):
    """A short run; what is compared is arithmetic, not skill."""
    recipe = ["--data", CORPUS, "--out", out, "--steps", 60, "--batch", 4, "--context", 64, "--set", "train.sample_tokens=0"]
    command("bitnet-trainer", "fit", *recipe, *more)


def ours(checkpoint: Path, prompts: list, work: Path) -> list:
    """Logits of the packed model in the runtime, embedding as the checkpoint has it."""
    btn, out = work / "model.btn", work / "logits.safetensors"
    command("bitnet-convert", checkpoint, btn, "--embedding", "source")
    results = []
    for ids in prompts:
        command("bitnet-run", btn, "--ids", ",".join(map(str, ids)), "--max-tokens", 1, "--kv", "f32", "--logits", out)
        results.append(load_file(out)["logits"])
    return results


def theirs(kind: type, checkpoint: Path, prompts: list) -> tuple:
    """Logits of the class that config.json names, loaded as anyone would load it."""
    model, info = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, output_loading_info=True)
    left = {key: found for key, found in info.items() if found}
    if type(model) is not kind or left:
        sys.exit(f"{checkpoint}: loaded as {type(model).__name__}, with {left}")
    if not all(layer.self_attn.q_proj.online_quant for layer in model.model.layers):
        sys.exit(f"{checkpoint}: the linears do not quantise their weights")
    with torch.no_grad():
        return model.eval(), [model(torch.tensor([ids])).logits[0] for ids in prompts]


def compare(what: str, a: list, b: list) -> bool:
    good, close = True, 0
    for a, b in zip(a, b, strict=True):
        apart = (a - b).abs()
        top = b.topk(2).values
        sure = top[:, 0] - top[:, 1] > MARGIN
        same = (a.argmax(-1) == b.argmax(-1)) | ~sure
        good &= apart.max() < FAR and apart.mean() < FAR_MEAN and bool(same.all())
        close += bool(apart.max() < CLOSE)
        print(f"{what}: {len(a):3} ids, largest difference {apart.max():.1e}, mean {apart.mean():.1e}")
    # A wrong network is wrong everywhere; a rounding boundary is met now and then.
    good &= close * 2 > len(LENGTHS)
    print(f"{what}: {'agree' if good else 'DISAGREE'}")
    return bool(good)


def write_fixture(run: Path, prompts: list, logits: list):
    FIXTURE.mkdir(exist_ok=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        shutil.copy(run / name, FIXTURE / name)
    save_file({f"logits.len{len(ids)}": x.contiguous() for ids, x in zip(prompts, logits)}, FIXTURE / "golden.safetensors")
    sequences = {f"len{len(ids)}": ids for ids in prompts}
    (FIXTURE / "golden.json").write_text(json.dumps({"sequences": sequences}) + "\n")


def round_trip(kind: type, shape: list, work: Path) -> tuple[bool, Path, list, list]:
    """There and back for one shape, which the library must load as this class."""
    run, back, again = work / "run", work / "back", work / "again"
    fit(run, "--tokenizer", "bpe:300", *(arg for key in shape for arg in ("--set", key)), "--preset", "nano")
    tokenizer = AutoTokenizer.from_pretrained(run)
    ids = tokenizer.encode(CORPUS.read_text()[5000:6000])
    if tokenizer.decode(ids) != CORPUS.read_text()[5000:6000]:
        sys.exit("the tokenizer does not give the text back")
    prompts = [ids[100 * i : 100 * i + length] for i, length in enumerate(LENGTHS)]
    model, expected = theirs(kind, run, prompts)
    good = compare(f"fit -> {kind.__name__}", ours(run, prompts, work), expected)
    # And back: what the library saves can be packed and trained on.
    model.save_pretrained(back)
    tokenizer.save_pretrained(back)
    good &= compare("save_pretrained -> convert", ours(back, prompts, work), expected)
    fit(again, "--init", back)
    good &= compare(f"fit --init -> {kind.__name__}", ours(again, prompts, work), theirs(kind, again, prompts)[1])
    return good, run, prompts, expected


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="replace the stored results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        good, *of_bitnet = round_trip(BitNetForCausalLM, SHAPE, Path(work))
        if args.write:
            write_fixture(*of_bitnet)
    with tempfile.TemporaryDirectory() as work:
        good &= round_trip(LlamaForCausalLM, SHAPE + LLAMA, Path(work))[0]
    with tempfile.TemporaryDirectory() as work:
        good &= round_trip(BitNetForCausalLM, SHAPE + IN_LINEARS, Path(work))[0]
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
