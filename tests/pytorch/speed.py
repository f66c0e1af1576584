"""Training speed: `bitnet-trainer fit` beside the same BitNet in PyTorch, on this machine, in turns.

    python speed.py [--rounds N] [--only TEXT]

Tokens per second of whole optimiser steps, medians over all rounds of the turns A B A B. Ours are those that `fit` itself reports on the
shipped corpus, everything included; PyTorch draws nothing and writes nothing. Where PyTorch can be written in several ways, the fastest
counts. Nothing else may run meanwhile.

Build first: cargo build --release -p bitnet-trainer
"""

import argparse
import functools
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

import bitnet
from programs import CORPUS, command
from recipe import optimizer

OUR_STEPS, WARM_STEPS, TORCH_SECONDS = 16, 4, 4.0


@dataclass
class Shape:
    """A model and a batch."""

    name: str
    hidden: int
    ffn: int
    context: int
    batch: int
    tokenizer: str

    def flags(self) -> list:
        keys = dict(hidden_size=self.hidden, intermediate_size=self.ffn, n_layers=4, n_heads=4, attention="grouped")
        keys |= dict(n_kv_heads=4, head_dim=self.hidden // 4, max_seq_len=self.context)
        settings = [f"model.{key}={value}" for key, value in keys.items()]
        settings += [f"train.{key}=0" for key in ("sample_tokens", "eval_every", "save_every")]
        settings += ["train.keep_best=false", "train.tensorboard=false", "train.mask_documents=false"]
        flags = ["--data", CORPUS, "--tokenizer", self.tokenizer, "--batch", self.batch, "--context", self.context]
        return flags + [part for setting in settings for part in ("--set", setting)]


S = Shape("S: 4 layers, d 256, FFN 688, context 256, batch 16, 512 ids", 256, 688, 256, 16, "bpe:512")
CHAR = Shape("char: 4 layers, d 128, FFN 344, context 64, batch 12", 128, 344, 64, 12, "char")


class Bf16Product(bitnet.QuantisedProduct):
    """All three products in bf16, in which codes are exact."""

    @staticmethod
    def forward(ctx, x, w):
        x = x.float()
        x_scale = 127 / x.abs().amax(dim=-1, keepdim=True).clamp(min=bitnet.SCALE_FLOOR)
        x_codes = (x * x_scale).round().clamp(-128, 127).bfloat16()
        w_scale = 1 / w.abs().mean().clamp(min=bitnet.SCALE_FLOOR)
        w_codes = (w * w_scale).round().clamp(-1, 1).bfloat16()
        ctx.save_for_backward(x_codes, x_scale, w_codes, w_scale)
        return F.linear(x_codes, w_codes) * (1 / (x_scale * w_scale))

    @staticmethod
    def backward(ctx, d_y):
        x_codes, x_scale, w_codes, w_scale = ctx.saved_tensors
        d_x = (d_y.bfloat16() @ w_codes).float() / w_scale
        d_w = (d_y / x_scale).bfloat16().flatten(0, -2).T @ x_codes.flatten(0, -2)
        return d_x, d_w.float()


class Bf16Linear(bitnet.BitLinear):
    def forward(self, x):
        return Bf16Product.apply(x, self.weight)


class DetachedLinear(bitnet.BitLinear):
    """The straight-through estimator as it is usually written."""

    def forward(self, x):
        return detached(x, self.weight)


def detached(x, w):
    x_scale = 127 / x.abs().amax(dim=-1, keepdim=True).clamp(min=bitnet.SCALE_FLOOR)
    w_scale = 1 / w.abs().mean().clamp(min=bitnet.SCALE_FLOOR)
    x_quantised = (x * x_scale).round().clamp(-128, 127) / x_scale
    w_quantised = (w * w_scale).round().clamp(-1, 1) / w_scale
    return F.linear(x + (x_quantised - x).detach(), w + (w_quantised - w).detach())


class FusedNorm(bitnet.RmsNorm):
    """PyTorch's own norm: faster than the formula, compiled as well."""

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


@dataclass
class Way:
    """How PyTorch does it."""

    name: str
    linear: type
    bf16: bool = False
    compiled: bool = False


EAGER = [Way("own gradient", bitnet.BitLinear), Way("detached", DetachedLinear)]
COMPILED = [
    Way("own gradient", Bf16Linear, bf16=True, compiled=True),
    Way("detached", DetachedLinear, bf16=True, compiled=True),
]


class TorchRun:
    """The model that `fit` has just trained, and an optimiser."""

    def __init__(self, folder: Path, shape: Shape, way: Way):
        self.way = way
        self.model = bitnet.load(folder)
        for module in self.model.modules():
            if isinstance(module, bitnet.BitLinear):
                module.__class__ = way.linear
            elif isinstance(module, bitnet.RmsNorm):
                module.__class__ = FusedNorm
        self.forward = torch.compile(self.model) if way.compiled else self.model
        vocab = self.model.config.vocab_size
        self.ids, self.targets = torch.randint(0, vocab, (2, shape.batch, shape.context))
        self.optimizer = optimizer(self.model, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)

    def step(self):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.way.bf16):
            loss = self.forward(self.ids, self.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def rates(self) -> list[float]:
        """Tokens per second of steps, after one that is not counted."""
        self.step()
        rates, end = [], time.perf_counter() + TORCH_SECONDS
        while time.perf_counter() < end or len(rates) < 3:
            start = time.perf_counter()
            self.step()
            rates.append(self.ids.numel() / (time.perf_counter() - start))
        return rates


def our_rates(shape: Shape, threads: int, precision: str, out: Path) -> list[float]:
    """Tokens per second of steps, as `fit` reports them."""
    more = ["--threads", threads, "--precision", precision, "--steps", OUR_STEPS, "--out", out, "--overwrite"]
    command("bitnet-trainer", "fit", *shape.flags(), *more)
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["tokens_per_s"] for line in lines[WARM_STEPS:-1]]


def compare(shape: Shape, threads: int, precision: str, ways: list[Way], rounds: int, folder: Path):
    """One row: medians of ours and of the fastest way."""
    torch.set_num_threads(threads)
    our_rates(shape, threads, precision, folder / "run")  # makes the model that PyTorch loads
    runs = [TorchRun(folder / "run", shape, way) for way in ways]
    ours, theirs = [], [[] for _ in ways]
    for run in runs:
        run.step()
    for _ in range(rounds):
        ours.append(statistics.median(our_rates(shape, threads, precision, folder / "run")))
        for rates, run in zip(theirs, runs):
            rates.append(run.rates())
    medians = [statistics.median(sum(rates, [])) for rates in theirs]
    middle, best = statistics.median(ours), max(medians)
    name = ways[medians.index(best)].name
    spread = f"{min(ours):.0f} to {max(ours):.0f}"
    print(f"{shape.name} | {threads} | {precision} | {middle:.0f} ({spread}) | {best:.0f} ({name}) | {middle / best:.2f}", flush=True)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--only", default="", help="rows whose name holds this")
    arguments = arguments.parse_args()
    bitnet.rope_tables = functools.lru_cache(bitnet.rope_tables)
    print("shape | threads | ours | tokens/s (rounds) | PyTorch tokens/s | ratio")
    rows = [(shape, threads, "f32", EAGER) for shape in (S, CHAR) for threads in (1, 2)]
    rows += [(S, threads, "bf16", COMPILED) for threads in (1, 2)]
    for shape, threads, precision, ways in rows:
        if arguments.only in f"{shape.name} {precision}":
            with tempfile.TemporaryDirectory() as folder:
                compare(shape, threads, precision, ways, arguments.rounds, Path(folder))


if __name__ == "__main__":
    main()
