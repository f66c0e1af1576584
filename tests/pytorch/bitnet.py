"""BitNet b1.58 in plain PyTorch, under the tensor names of our checkpoints.

The graph of formats/NUMERICS.md with ordinary torch operations: multi-head, grouped-query and multi-head latent attention,
squared ReLU or SiLU, sub-norms or none, norms inside linears or none, quantised or not. `state_dict()` has the names that
bitnet-trainer, bitnet-convert and (but for latent attention) the transformers library read.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

SCALE_FLOOR = 1e-5


@dataclass
class Config:
    """What config.json says, as far as it decides a number."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    hidden_act: str = "relu2"
    head_dim: int | None = None
    kv_lora_rank: int | None = None
    qk_nope_head_dim: int | None = None
    qk_rope_head_dim: int | None = None
    v_head_dim: int | None = None
    sub_norms: bool = True
    in_linear: float | None = None
    quantize: bool = True

    @classmethod
    def from_json(cls, keys: dict) -> "Config":
        known = {name: keys[name] for name in cls.__dataclass_fields__ if keys.get(name) is not None}
        known.setdefault("rope_theta", (keys.get("rope_parameters") or {}).get("rope_theta"))
        known.setdefault("num_key_value_heads", known["num_attention_heads"])
        quantization = keys.get("quantization_config") or {}
        if quantization.get("use_rms_norm"):
            known["in_linear"] = quantization.get("rms_norm_eps", 1e-6)
        known["quantize"] = quantization.get("quantization_mode", "online") != "none"
        known["sub_norms"] = keys.get("architectures") != ["LlamaForCausalLM"]
        config = cls(**known)
        if config.head_dim is None:
            config.head_dim = config.hidden_size // config.num_attention_heads
        return config

    @property
    def is_latent(self) -> bool:
        return self.kv_lora_rank is not None


class QuantisedProduct(torch.autograd.Function):
    """y = (codes of x) (codes of w)^T / (their scales), with straight-through gradients.

    The product of the codes is a sum of integers below 2^24 and so exact in f32, in whatever order. The gradient is that of the
    linear map with codes and scales held constant; the clamp is not masked.
    """

    @staticmethod
    def forward(ctx, x, w):
        x_scale = 127 / x.abs().amax(dim=-1, keepdim=True).clamp(min=SCALE_FLOOR)
        x_codes = (x * x_scale).round().clamp(-128, 127)
        # The mean in f64, so that it does not depend on the order in which a device adds.
        w_scale = 1 / w.double().abs().mean().float().clamp(min=SCALE_FLOOR)
        w_codes = (w * w_scale).round().clamp(-1, 1)
        ctx.save_for_backward(x_codes, x_scale, w_codes, w_scale)
        return F.linear(x_codes, w_codes) * (1 / (x_scale * w_scale))

    @staticmethod
    def backward(ctx, d_y):
        x_codes, x_scale, w_codes, w_scale = ctx.saved_tensors
        d_x = (d_y @ w_codes) / w_scale
        d_w = (d_y / x_scale).flatten(0, -2).T @ x_codes.flatten(0, -2)
        return d_x, d_w


class BitLinear(nn.Linear):
    """A linear map without bias: ternary weights and int8 activations, or neither; behind a norm of its own where `eps` is given."""

    def __init__(self, inputs: int, outputs: int, quantize: bool, eps: float | None = None):
        super().__init__(inputs, outputs, bias=False)
        self.quantize = quantize
        self.rms_norm = None if eps is None else RmsNorm(inputs, eps)

    def forward(self, x):
        x = x if self.rms_norm is None else self.rms_norm(x)
        return QuantisedProduct.apply(x, self.weight) if self.quantize else F.linear(x, self.weight)


class RmsNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rotate(x, cos, sin):
    """Turns element i of the last dimension together with element i + half."""
    low, high = x.chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


def rope_tables(positions: int, dim: int, theta: float, device):
    """Cosines and sines, [positions, dim / 2]. The angle is an f32 product, as in the runtime."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float64) / dim
    inv_freq = (theta**-exponents).float().to(device)
    angles = torch.arange(positions, dtype=torch.float32, device=device)[:, None] * inv_freq
    return angles.cos(), angles.sin()


class GroupedAttention(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.heads, self.kv_heads, self.dim, self.theta = c.num_attention_heads, c.num_key_value_heads, c.head_dim, c.rope_theta
        linear = lambda outputs, inputs: BitLinear(inputs, outputs, c.quantize, c.in_linear)
        self.q_proj = linear(self.heads * self.dim, c.hidden_size)
        self.k_proj = linear(self.kv_heads * self.dim, c.hidden_size)
        self.v_proj = linear(self.kv_heads * self.dim, c.hidden_size)
        self.attn_sub_norm = RmsNorm(self.heads * self.dim, c.rms_norm_eps) if c.sub_norms else nn.Identity()
        self.o_proj = linear(c.hidden_size, self.heads * self.dim)

    def forward(self, x, mask=None):
        batch, length, _ = x.shape
        split = lambda y, heads: y.view(batch, length, heads, self.dim).transpose(1, 2)
        cos, sin = rope_tables(length, self.dim, self.theta, x.device)
        q = rotate(split(self.q_proj(x), self.heads), cos, sin)
        k = rotate(split(self.k_proj(x), self.kv_heads), cos, sin)
        v = split(self.v_proj(x), self.kv_heads)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        return self.o_proj(self.attn_sub_norm(attend(q, k, v, mask)))


class LatentAttention(nn.Module):
    """DeepSeek-V2, section 2.1, without the low-rank query."""

    def __init__(self, c: Config):
        super().__init__()
        self.heads, self.theta = c.num_attention_heads, c.rope_theta
        self.rank, self.nope, self.rope, self.v_dim = c.kv_lora_rank, c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim
        linear = lambda outputs, inputs: BitLinear(inputs, outputs, c.quantize)
        self.q_proj = linear(self.heads * (self.nope + self.rope), c.hidden_size)
        self.kv_a_proj_with_mqa = linear(self.rank + self.rope, c.hidden_size)
        self.kv_a_layernorm = RmsNorm(self.rank, c.rms_norm_eps)
        self.kv_b_proj = linear(self.heads * (self.nope + self.v_dim), self.rank)
        self.attn_sub_norm = RmsNorm(self.heads * self.v_dim, c.rms_norm_eps)
        self.o_proj = linear(c.hidden_size, self.heads * self.v_dim)

    def forward(self, x, mask=None):
        batch, length, _ = x.shape
        split = lambda y, dim: y.view(batch, length, self.heads, dim).transpose(1, 2)
        cos, sin = rope_tables(length, self.rope, self.theta, x.device)
        q_nope, q_rope = split(self.q_proj(x), self.nope + self.rope).split([self.nope, self.rope], dim=-1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split([self.rank, self.rope], dim=-1)
        kv = split(self.kv_b_proj(self.kv_a_layernorm(latent)), self.nope + self.v_dim)
        k_nope, v = kv.split([self.nope, self.v_dim], dim=-1)
        # One rotary key for all heads.
        k_rope = rotate(k_rope[:, None], cos, sin).expand(-1, self.heads, -1, -1)
        q = torch.cat([q_nope, rotate(q_rope, cos, sin)], dim=-1)
        k = torch.cat([k_nope, k_rope], dim=-1)
        return self.o_proj(self.attn_sub_norm(attend(q, k, v, mask)))


def attend(q, k, v, mask):
    """Attention, heads concatenated; causal where there is no mask."""
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    return out.transpose(1, 2).flatten(-2)


def document_mask(ids, end_of_text: int):
    """[batch, 1, length, length], true where a position sees another: no later one, none of a text that ended before."""
    ends = (ids == end_of_text).long()
    text = ends.cumsum(dim=-1) - ends
    same = text[:, None, :, None] == text[:, None, None, :]
    return same.tril()


class FeedForward(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        linear = lambda outputs, inputs: BitLinear(inputs, outputs, c.quantize, c.in_linear)
        self.gate_proj = linear(c.intermediate_size, c.hidden_size)
        self.up_proj = linear(c.intermediate_size, c.hidden_size)
        self.ffn_sub_norm = RmsNorm(c.intermediate_size, c.rms_norm_eps) if c.sub_norms else nn.Identity()
        self.down_proj = linear(c.hidden_size, c.intermediate_size)
        self.act = {"relu2": lambda a: a.relu().square(), "silu": F.silu}[c.hidden_act]

    def forward(self, x):
        return self.down_proj(self.ffn_sub_norm(self.act(self.gate_proj(x)) * self.up_proj(x)))


class Block(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.input_layernorm = RmsNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = LatentAttention(c) if c.is_latent else GroupedAttention(c)
        self.post_attention_layernorm = RmsNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = FeedForward(c)

    def forward(self, h, mask=None):
        h = h + self.self_attn(self.input_layernorm(h), mask)
        return h + self.mlp(self.post_attention_layernorm(h))


class Body(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Block(c) for _ in range(c.num_hidden_layers))
        self.norm = RmsNorm(c.hidden_size, c.rms_norm_eps)

    def forward(self, ids, mask=None):
        h = self.embed_tokens(ids)
        for layer in self.layers:
            h = layer(h, mask)
        return self.norm(h)


class BitNet(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.config = c
        self.model = Body(c)
        if not c.tie_word_embeddings:
            self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)

    def forward(self, ids, targets=None, end_of_text: int | None = None):
        """Logits, [batch, length, vocab_size]; with targets the mean loss, nats per token.

        No text sees the ones before its `end_of_text`, where that is given.
        """
        mask = None if end_of_text is None else document_mask(ids, end_of_text)
        h = self.model(ids, mask)
        tied = self.config.tie_word_embeddings
        logits = F.linear(h, self.model.embed_tokens.weight) if tied else self.lm_head(h)
        return logits if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def load(folder: Path, quantize: bool | None = None) -> BitNet:
    """Reads a checkpoint of f32, f16 or bf16 master weights to f32. `quantize` overrules config.json."""
    config = Config.from_json(json.loads((folder / "config.json").read_text()))
    if quantize is not None:
        config.quantize = quantize
    model = BitNet(config)
    tensors = load_file(folder / "model.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return model


def save(tensors: dict, folder: Path):
    """Writes master weights; config.json and tokenizer.json are the caller's."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t.detach().float().cpu().contiguous() for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
