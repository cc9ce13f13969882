"""The decoder that the Llama-like families share: pre-norm blocks of grouped-query attention and a gated MLP."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from sgjax.kernels import Ops
from sgjax.layers.attention import LayerCache, paged_attention
from sgjax.layers.batch import ForwardBatch
from sgjax.layers.linear import linear, value
from sgjax.layers.norm import rms_norm
from sgjax.layers.rotary import rotary_angles, rotate
from sgjax.models.config import ModelConfig
from sgjax.models.spec import Concat, param

# Fused so that one product serves all. The sharded axis, KV heads or feed-forward, comes first: a device then holds
# whole groups, and no communication is needed to take the parts out.
GROUP_QKV = Concat(axis=1, sizes=("group", 1, 1))
GATE_UP = Concat(axis=1, sizes=(1, 1))


class Attention(nnx.Module):
    def __init__(self, cfg: ModelConfig, layer: int, prefix: str):
        self.cfg, self.window = cfg, cfg.windows[layer]
        qkv = ("kv_heads", "group+2", "head_dim")
        weights = tuple(f"{prefix}.{x}_proj.weight" for x in "qkv")
        biases = tuple(f"{prefix}.{x}_proj.bias" for x in "qkv")
        self.wqkv = param(cfg, qkv, ("hidden",), hf=weights, fold=GROUP_QKV)
        self.bqkv = param(cfg, qkv, hf=biases, fold=GROUP_QKV) if cfg.qkv_bias else None
        self.wo = param(cfg, ("hidden",), ("kv_heads", "group", "head_dim"), hf=f"{prefix}.o_proj.weight")
        self.bo = param(cfg, ("hidden",), hf=f"{prefix}.o_proj.bias") if cfg.out_bias else None
        self.q_norm = param(cfg, ("head_dim",), hf=f"{prefix}.q_norm.weight", ones=True) if cfg.qk_norm else None
        self.k_norm = param(cfg, ("head_dim",), hf=f"{prefix}.k_norm.weight", ones=True) if cfg.qk_norm else None

    def __call__(
        self, x: jax.Array, angles: tuple[jax.Array, jax.Array], batch: ForwardBatch, cache: LayerCache, ops: Ops
    ) -> tuple[jax.Array, LayerCache]:
        cfg = self.cfg
        qkv = linear(x, self.wqkv, self.bqkv)  # (T, K, G + 2, H)
        q, k, v = qkv[:, :, : cfg.group_size], qkv[:, :, cfg.group_size], qkv[:, :, cfg.group_size + 1]
        if self.q_norm is not None and self.k_norm is not None:
            q, k = rms_norm(q, self.q_norm, cfg.norm_eps), rms_norm(k, self.k_norm, cfg.norm_eps)
        q, k = rotate(q, angles), rotate(k, angles)
        out, cache = paged_attention(q, k, v, batch, cache, ops, scale=cfg.head_dim**-0.5, window=self.window)
        return linear(out, self.wo, self.bo, num_in=3, dtype=jnp.float32), cache


class MLP(nnx.Module):
    def __init__(self, cfg: ModelConfig, prefix: str):
        hidden, forward, gate_up = ("hidden",), ("feed_forward",), ("feed_forward", 2)
        gate, up, down = (f"{prefix}.{x}_proj" for x in ("gate", "up", "down"))
        biases, bias = (f"{gate}.bias", f"{up}.bias"), cfg.mlp_bias
        self.w_gate_up = param(cfg, gate_up, hidden, hf=(f"{gate}.weight", f"{up}.weight"), fold=GATE_UP)
        self.b_gate_up = param(cfg, gate_up, hf=biases, fold=GATE_UP) if bias else None
        self.w_down = param(cfg, hidden, forward, hf=f"{down}.weight")
        self.b_down = param(cfg, hidden, hf=f"{down}.bias") if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        gate_up = linear(x, self.w_gate_up, self.b_gate_up)  # (T, F, 2)
        # In float32 XLA drops the product's rounding to bfloat16 on a CPU, and the conversions with it.
        gate, up = gate_up[..., 0].astype(jnp.float32), gate_up[..., 1].astype(jnp.float32)
        return linear((jax.nn.silu(gate) * up).astype(x.dtype), self.w_down, self.b_down, dtype=jnp.float32)


class Block(nnx.Module):
    def __init__(self, cfg: ModelConfig, layer: int):
        prefix, hidden = f"model.layers.{layer}", ("hidden",)
        self.eps = cfg.norm_eps
        self.attn_norm = param(cfg, hidden, hf=f"{prefix}.input_layernorm.weight", ones=True)
        self.attn = Attention(cfg, layer, f"{prefix}.self_attn")
        self.mlp_norm = param(cfg, hidden, hf=f"{prefix}.post_attention_layernorm.weight", ones=True)
        self.mlp = MLP(cfg, f"{prefix}.mlp")

    def __call__(
        self, x: jax.Array, angles: tuple[jax.Array, jax.Array], batch: ForwardBatch, cache: LayerCache, ops: Ops
    ) -> tuple[jax.Array, LayerCache]:
        attended, cache = self.attn(rms_norm(x, self.attn_norm, self.eps), angles, batch, cache, ops)
        x = x + attended
        return x + self.mlp(rms_norm(x, self.mlp_norm, self.eps)), cache


class Decoder(nnx.Module):
    """Embedding, blocks, final norm and language-model head."""

    def __init__(self, cfg: ModelConfig):
        self.cfg = cfg
        self.embed = param(cfg, ("vocab",), ("hidden",), hf="model.embed_tokens.weight")
        self.layers = nnx.List([Block(cfg, layer) for layer in range(cfg.num_layers)])
        self.norm = param(cfg, ("hidden",), hf="model.norm.weight", ones=True)
        self.head = None if cfg.tie_embeddings else param(cfg, ("vocab",), ("hidden",), hf="lm_head.weight")

    def __call__(self, batch: ForwardBatch, cache: list[LayerCache], ops: Ops) -> tuple[jax.Array, list[LayerCache]]:
        """Hidden states (T, D) after the final norm, and the cache with the batch's tokens in it."""
        # The residual stream is float32 (docs/adr/0004): additions of many layers are where bfloat16 loses most.
        x = value(self.embed)[batch.token_ids].astype(jnp.float32)
        angles = rotary_angles(batch.positions, self.cfg.rope)
        new_cache = []
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            graphdef, params = nnx.split(layer)
            x, layer_cache = _run_block(params, x, angles, batch, layer_cache, graphdef=graphdef, ops=ops)
            new_cache.append(layer_cache)
        return rms_norm(x, self.norm, self.cfg.norm_eps), new_cache

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 (n, V) of hidden states (n, D)."""
        return linear(hidden, self.embed if self.head is None else self.head, dtype=jnp.float32)


@functools.partial(jax.jit, static_argnames=("graphdef", "ops"))
def _run_block(
    params: nnx.State,
    x: jax.Array,
    angles: tuple[jax.Array, jax.Array],
    batch: ForwardBatch,
    cache: LayerCache,
    *,
    graphdef: nnx.GraphDef,
    ops: Ops,
) -> tuple[jax.Array, LayerCache]:
    """One block, traced once for all layers that are alike: a step is traced and lowered several times faster. XLA
    inlines the calls before it optimises."""
    return nnx.merge(graphdef, params)(x, angles, batch, cache, ops)
