"""Loss, every gradient and twenty training steps of small models in PyTorch: what tests/fixtures/pytorch holds.

    python parity.py                    computes everything again and compares it with the stored results
    python parity.py --write            replaces the stored results

Weights are drawn here and stored as a checkpoint folder, which the trainer reads as it reads any checkpoint. The trainer's test
makes the same batches, so that what is compared is a whole training step: gradients, clipping, AdamW, schedule.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import recipe
from bitnet import BitNet, Config, load, save

FIXTURES = Path(__file__).parents[1] / "fixtures" / "pytorch"
MODES = {"plain": False, "quantised": True}
RECIPE = {
    "steps": 20,
    "batch": 4,
    "context": 32,
    "accumulation": 2,
    "lr": 3e-4,
    "min_lr": 3e-5,
    "warmup": 3,
    "beta1": 0.9,
    "beta2": 0.95,
    "eps": 1e-8,
    "weight_decay": 0.1,
    "clip": 1.0,
    "seed": 5,
}
# Every width differs from every other where it may.
SHAPE = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "vocab_size": 37, "max_position_embeddings": 32}
GROUPED = {"num_attention_heads": 4, "head_dim": 8}
LATENT = {"num_attention_heads": 2, "kv_lora_rank": 16, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 16}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "tie_word_embeddings": False}
ONLINE = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
IN_LINEARS = {"quantization_config": ONLINE | {"use_rms_norm": True, "rms_norm_eps": 1e-6}}
CASES = {
    "multi_head": SHAPE | GROUPED | {"num_key_value_heads": 4},
    "grouped_query": SHAPE | GROUPED | {"num_key_value_heads": 2, "tie_word_embeddings": False},
    "latent": SHAPE | LATENT | {"num_key_value_heads": 2},
    "llama": SHAPE | GROUPED | LLAMA | {"num_key_value_heads": 2},
    "norms_in_linears": SHAPE | GROUPED | IN_LINEARS | {"num_key_value_heads": 2},
}


def config_json(shape: dict) -> dict:
    latent = "kv_lora_rank" in shape
    return {
        "architectures": ["BitNetLatentForCausalLM" if latent else "BitNetForCausalLM"],
        "model_type": "bitnet_latent" if latent else "bitnet",
        "hidden_act": "relu2",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "quantization_config": ONLINE,
    } | shape


def draw(model: BitNet, seed: int) -> dict:
    """Weights wide enough for every part to matter, gains away from one."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda shape: torch.randn(shape, generator=generator)
    weights = {}
    for name, parameter in model.state_dict().items():
        shape = parameter.shape
        weights[name] = 1 + 0.3 * normal(shape) if len(shape) == 1 else shape[-1] ** -0.5 * normal(shape)
    return weights


def text(vocab: int, length: int) -> list[int]:
    """Ids with something to learn: each follows from the one before, but for one of three."""
    generator = torch.Generator().manual_seed(1)
    draws = torch.randint(0, 3, (length,), generator=generator).tolist()
    ids = [1]
    for extra in draws[1:]:
        ids.append((5 * ids[-1] + 7 * extra + 3) % vocab)
    return ids


def step_gradient(model: BitNet, ids: torch.Tensor, r: dict, step: int) -> float:
    """Leaves the gradient of the mean loss over a step's micro-batches in the parameters; returns that loss."""
    model.zero_grad()
    total = 0.0
    for micro in range(r["accumulation"]):
        index = step * r["accumulation"] + micro
        starts = recipe.batch_starts(r["seed"], index, r["batch"], len(ids), r["context"])
        windows = torch.stack([ids[start : start + r["context"] + 1] for start in starts])
        loss = model(windows[:, :-1], windows[:, 1:]) / r["accumulation"]
        loss.backward()
        total += loss.item()
    return total


def run(model: BitNet, ids: torch.Tensor, r: dict) -> tuple[list, dict]:
    """Twenty steps: their losses, norms and rates, and the gradients of the first."""
    adam = recipe.optimizer(model, r["lr"], (r["beta1"], r["beta2"]), r["eps"], r["weight_decay"])
    records, first = [], {}
    for step in range(r["steps"]):
        loss = step_gradient(model, ids, r, step)
        if step == 0:
            first = {name: p.grad.clone() for name, p in model.named_parameters()}
        rate = recipe.learning_rate(step, r["lr"], r["min_lr"], r["warmup"], r["steps"])
        for group in adam.param_groups:
            group["lr"] = rate
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), r["clip"]).item()
        adam.step()
        records.append({"loss": loss, "grad_norm": norm, "lr": rate})
    return records, first


def compute(folder: Path, r: dict, ids: list) -> tuple[dict, dict]:
    steps, gradients = {}, {}
    for mode, quantize in MODES.items():
        steps[mode], first = run(load(folder, quantize), torch.tensor(ids), r)
        gradients |= {f"{mode}.{name}": gradient for name, gradient in first.items()}
    return steps, gradients


def write(folder: Path, shape: dict, seed: int, r: dict):
    folder.mkdir(parents=True, exist_ok=True)
    keys = config_json(shape)
    (folder / "config.json").write_text(json.dumps(keys, indent=2) + "\n")
    save(draw(BitNet(Config.from_json(keys)), seed), folder)
    ids = text(keys["vocab_size"], 40 * r["context"])
    steps, gradients = compute(folder, r, ids)
    save_file(gradients, folder / "gradients.safetensors")
    golden = {"torch": torch.__version__, "recipe": r, "ids": ids, "steps": steps}
    (folder / "golden.json").write_text(json.dumps(golden) + "\n")
    for mode, records in steps.items():
        print(f"{folder.name:16} {mode:10} loss {records[0]['loss']:.6f} -> {records[-1]['loss']:.6f}, {len(gradients) // 2} gradients")


def compare(folder: Path) -> bool:
    """True if this machine's PyTorch gives the stored results."""
    golden = json.loads((folder / "golden.json").read_text())
    stored = load_file(folder / "gradients.safetensors")
    steps, gradients = compute(folder, golden["recipe"], golden["ids"])
    good = set(stored) == set(gradients)
    for mode in MODES:
        worst = max(relative(gradients[name], stored[name]) for name in stored if name.startswith(mode))
        losses = [abs(a["loss"] - b["loss"]) for a, b in zip(steps[mode], golden["steps"][mode], strict=True)]
        good &= worst < 1e-5 and losses[0] < 1e-5
        print(f"{folder.name:16} {mode:10} gradients within {worst:.1e}, losses within {losses[0]:.1e} at first, {max(losses):.1e} in {len(losses)} steps")
    return good


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="replace the stored results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.write:
        return 0 if all([compare(FIXTURES / name) for name in CASES]) else 1
    for seed, (name, shape) in enumerate(CASES.items(), start=1):
        write(FIXTURES / name, shape, seed, RECIPE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
