"""Trains our architecture with PyTorch on as many processes as torchrun starts, from our checkpoints and back to them.

    torchrun --nproc-per-node 8 train.py --init start --data tokens --out cluster --steps 10000 --batch 16

`--init` is a folder that bitnet-trainer fit wrote, or any public BitNet checkpoint in one safetensors file; `--data` is a folder
that bitnet-trainer prepare wrote. Batches are those of the trainer: N processes take the steps that `fit` takes with
train.accumulation=N. `--out` holds model.safetensors under our names with config.json and tokenizer.json; `--resume` goes on
from the state that is saved beside it. docs/clusters.md has the whole recipe.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import recipe
from bitnet import load, save


class Tokens:
    """The training tokens of a folder that `prepare` wrote; shards stay on disk."""

    def __init__(self, folder: Path):
        index = json.loads((folder / "shards.json").read_text())
        dtype = {"u16": "<u2", "u32": "<u4"}[index["id_width"]]
        self.shards = [np.memmap(folder / s["file"], dtype, "r") for s in index["train"]["shards"]]
        self.begins = np.cumsum([0] + [len(shard) for shard in self.shards])
        self.end_of_text, self.vocab_size = index["end_of_text"], index["vocab_size"]

    def __len__(self) -> int:
        return int(self.begins[-1])

    def window(self, start: int, length: int) -> torch.Tensor:
        parts = []
        shard = int(np.searchsorted(self.begins, start, side="right")) - 1
        while length > 0:
            part = self.shards[shard][start - self.begins[shard] :][:length]
            parts.append(part.astype(np.int64))
            start, length, shard = start + len(part), length - len(part), shard + 1
        return torch.from_numpy(np.concatenate(parts))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init", type=Path, required=True, help="checkpoint to start from")
    parser.add_argument("--data", type=Path, required=True, help="folder that bitnet-trainer prepare wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the result")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--stop-at", type=int, help="save and stop after this step")
    parser.add_argument("--batch", type=int, default=4, help="sequences per process and micro-batch")
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches per process and step")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak; falls by a cosine to a tenth")
    parser.add_argument("--warmup", type=int, help="steps; a twentieth of all, at most 375, unless given")
    parser.add_argument("--beta2", type=float, default=0.95)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=1000)
    parser.add_argument("--fsdp", action="store_true", help="shard weights, gradients and moments over the processes")
    parser.add_argument("--resume", action="store_true", help="go on from the state in --out")
    args = parser.parse_args()
    args.warmup = min(args.steps // 20, 375) if args.warmup is None else args.warmup
    return args


def distribute(model, device, fsdp: bool):
    """The model for this process: whole with gradients averaged, or a shard of every parameter."""
    model.to(device)
    if not fsdp:
        return DistributedDataParallel(model)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def backward(model, tokens: Tokens, args, step: int, device) -> float:
    """Leaves the mean gradient over all micro-batches of a step; returns their mean loss on this process."""
    rank, world, total = dist.get_rank(), dist.get_world_size(), 0.0
    for micro in range(args.accumulation):
        index = (step * args.accumulation + micro) * world + rank
        starts = recipe.batch_starts(args.seed, index, args.batch, len(tokens), args.context)
        windows = torch.stack([tokens.window(start, args.context + 1) for start in starts]).to(device)
        loss = model(windows[:, :-1], windows[:, 1:], tokens.end_of_text) / args.accumulation
        loss.backward()
        total += loss.item()
    return total


def save_all(model, adam, step: int, args):
    """The state to resume from, then the checkpoint that others read. Every process takes part."""
    weights, moments = get_state_dict(model, adam)
    dcp.save({"model": weights, "optimizer": moments, "step": torch.tensor(step)}, checkpoint_id=args.out / "state")
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() == 0:
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            if (args.init / name).exists():
                shutil.copy(args.init / name, args.out / name)
        save(whole, args.out)
    dist.barrier()


def resume(model, adam, args) -> int:
    weights, moments = get_state_dict(model, adam)
    state = {"model": weights, "optimizer": moments, "step": torch.tensor(0)}
    dcp.load(state, checkpoint_id=args.out / "state")
    set_state_dict(model, adam, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return int(state["step"])


def main():
    args = arguments()
    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    tokens = Tokens(args.data)
    model = load(args.init, quantize=True)
    if tokens.vocab_size > model.config.vocab_size:
        sys.exit(f"--data has ids up to {tokens.vocab_size}, but --init has {model.config.vocab_size} rows: another tokenizer")
    model = distribute(model, device, args.fsdp)
    adam = recipe.optimizer(model, args.lr, (0.9, args.beta2), 1e-8, args.weight_decay)
    first = resume(model, adam, args) if args.resume else 0
    for step in range(first, args.steps):
        loss = torch.tensor(backward(model, tokens, args, step, device), device=device)
        dist.all_reduce(loss)
        rate = recipe.learning_rate(step, args.lr, args.lr / 10, args.warmup, args.steps)
        for group in adam.param_groups:
            group["lr"] = rate
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        adam.step()
        adam.zero_grad()
        if dist.get_rank() == 0:
            record = {"step": step + 1, "loss": loss.item() / dist.get_world_size(), "grad_norm": norm.item(), "lr": rate}
            print(json.dumps(record), flush=True)
        last = step + 1 in (args.steps, args.stop_at)
        if last or (step + 1) % args.save_every == 0:
            save_all(model, adam, step + 1, args)
        if last:
            break
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
