"""The trainer's optimiser settings, schedule and order of batches, for runs that follow it step by step."""

import math

import torch

MASK = (1 << 64) - 1


def learning_rate(step: int, lr: float, min_lr: float, warmup: int, steps: int) -> float:
    """Rate of a step counted from 0: a line up to `lr`, then half a cosine down to `min_lr`."""
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    progress = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def optimizer(model: torch.nn.Module, lr: float, betas: tuple, eps: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW. Decay is for the BitLinear matrices; norms, embedding and head go without."""
    dense = ("embed_tokens.weight", "lm_head.weight", "norm.weight")
    groups = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[not name.endswith(dense)].append(parameter)
    return torch.optim.AdamW(
        [{"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0.0}],
        lr=lr,
        betas=betas,
        eps=eps,
    )


class Rng:
    """SplitMix64, addressed as the trainer's: a function of seed, purpose and index."""

    BATCH = 2

    def __init__(self, seed: int, stream: int, index: int):
        key = mix((mix(seed) + stream) & MASK)
        self.state = mix((key + index) & MASK)

    def below(self, n: int) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        return (mix(self.state) * n) >> 64


def mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def batch_starts(seed: int, index: int, batch: int, tokens: int, context: int) -> list[int]:
    """Where the windows of micro-batch `index` begin (train.order=random)."""
    rng = Rng(seed, Rng.BATCH, index)
    return [rng.below(tokens - context) for _ in range(batch)]
