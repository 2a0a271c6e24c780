"""Lowering attention and transformer encoder layers (A. Vaswani et al., "Attention is all you need", NeurIPS 2017).

Keys, queries and values come from one product where they are of one value; the scores' factor goes into the queries'
weights.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from splitsec.errors import UnsupportedLayerError
from splitsec.mpc.program.lowering.activations import bend, relu, softmax
from splitsec.mpc.program.lowering.arithmetic import add, matmul
from splitsec.mpc.program.lowering.base import LOWERINGS, MASKED, Call, Lower, Lowering, Shared, Tables
from splitsec.mpc.program.lowering.layers import layer_norm, linear


def _attend(
    lowering: Lowering, name: str, q: Shared, k: Shared, v: Shared, mask: torch.Tensor | Shared | None
) -> Shared:
    """softmax(q k' + mask) v over (..., length, size); q is scaled already."""
    scores = matmul(lowering, name, q, lowering.transpose(name, k), (*q.shape[:-1], k.shape[-2]))
    if mask is not None:
        scores = add(lowering, name, scores, mask, scores.shape)
    weights = softmax(lowering, name, scores, len(scores.shape) - 1)
    return matmul(lowering, name, weights, v, (*q.shape[:-1], v.shape[-1]))


def _mask(name: str, mask: Any) -> torch.Tensor | None:
    """Return a public mask as it is added to scores; True takes no part."""
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor):
        raise UnsupportedLayerError(f"'{name}' has a mask that depends on the input; no encrypted form for that")
    bias: torch.Tensor = mask.detach().double()
    return bias * MASKED if mask.dtype == torch.bool else bias.clamp(min=MASKED)


def _scaled_dot_product(lowering: Lowering, call: Call) -> Shared:
    options = call.options(
        "query key value attn_mask dropout_p is_causal scale enable_gqa",
        attn_mask=None,
        dropout_p=0.0,
        is_causal=False,
        scale=None,
        enable_gqa=False,
    )
    q, k, v = (options[name] for name in ("query", "key", "value"))
    if options["dropout_p"] or options["enable_gqa"]:
        raise UnsupportedLayerError(f"'{call.name}' drops out or groups its queries; no encrypted form for that")
    mask = options["attn_mask"]
    if isinstance(mask, Shared):
        if lowering.is_truth(mask):
            mask = lowering.affine(call.name, mask, -MASKED, MASKED)
        return _attend(lowering, call.name, _scaled(lowering, call, q, options["scale"]), k, v, mask)
    if isinstance(mask, torch.Tensor) and mask.dtype == torch.bool:
        # Here true takes part; in nn.MultiheadAttention it does not.
        mask = ~mask
    mask = _mask(call.name, mask)
    if options["is_causal"]:
        mask = MASKED * torch.ones(q.shape[-2], k.shape[-2]).triu(1).double()
    return _attend(lowering, call.name, _scaled(lowering, call, q, options["scale"]), k, v, mask)


def _scaled(lowering: Lowering, call: Call, q: Shared, scale: float | None) -> Shared:
    return lowering.affine(call.name, q, 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale))


def attention(
    lowering: Lowering, name: str, layer: nn.MultiheadAttention, q: Shared, k: Shared, v: Shared, mask: Any = None
) -> Shared:
    """`nn.MultiheadAttention` in eval mode."""
    if layer.bias_k is not None or layer.add_zero_attn:
        raise UnsupportedLayerError(f"layer '{name}' appends to its keys; use add_bias_kv=False, add_zero_attn=False")
    size, heads = layer.embed_dim, layer.num_heads
    factor = torch.ones(3 * size, 1, dtype=torch.float64)
    factor[:size] = 1 / math.sqrt(size // heads)
    if layer.in_proj_weight is not None:
        weight = layer.in_proj_weight.detach().double() * factor
        parts = list(weight.split(size))
    else:
        three = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
        parts = [bias.detach().double() for bias in three]
        parts[0] = parts[0] * factor[:size]
    bias = torch.zeros(3 * size) if layer.in_proj_bias is None else layer.in_proj_bias.detach()
    biases = (bias.double() * factor[:, 0]).split(size)
    if q == k == v and layer.in_proj_weight is not None:
        whole = linear(lowering, name, q, torch.cat(parts), torch.cat(biases))
        three_values = [lowering.narrow(name, whole, len(whole.shape) - 1, at * size, size) for at in range(3)]
    else:
        three_values = [
            linear(lowering, name, x, weight, bias) for x, weight, bias in zip((q, k, v), parts, biases, strict=True)
        ]
    # Length and batch come in this order unless `batch_first`; heads go beside the batch.
    order = (0, 2, 1, 3) if layer.batch_first else (1, 2, 0, 3)
    queries, keys, values = (
        lowering.permute(name, lowering.reshape(name, x, (*x.shape[:2], heads, size // heads)), order)
        for x in three_values
    )
    mask = _mask(name, mask)
    if mask is not None and mask.dim() == 3:
        mask = mask.view(queries.shape[0], heads, *mask.shape[1:])
    output = _attend(lowering, name, queries, keys, values, mask)
    back = (0, 2, 1, 3) if layer.batch_first else (2, 0, 1, 3)
    output = lowering.reshape(name, lowering.permute(name, output, back), q.shape)
    return linear(lowering, name, output, layer.out_proj.weight, layer.out_proj.bias)


def _multihead(lowering: Lowering, call: Call) -> tuple[Shared, None]:
    options = call.options(
        "query key value key_padding_mask need_weights attn_mask average_attn_weights is_causal",
        key_padding_mask=None,
        need_weights=True,
        attn_mask=None,
        average_attn_weights=True,
        is_causal=False,
    )
    q, k, v = (options[name] for name in ("query", "key", "value"))
    if len(q.shape) != 3:
        raise UnsupportedLayerError(f"layer '{call.name}' takes a batch: give it three dimensions")
    if options["key_padding_mask"] is not None:
        raise UnsupportedLayerError(f"layer '{call.name}' has a padding mask; leave padded places out of the sequence")
    # Whoever uses the attention's weights finds that there are none.
    return attention(lowering, call.name, call.layer, q, k, v, options["attn_mask"]), None


def _encoder_layer(lowering: Lowering, call: Call) -> Shared:
    options = call.options(
        "src src_mask src_key_padding_mask is_causal", src_mask=None, src_key_padding_mask=None, is_causal=False
    )
    if options["src_key_padding_mask"] is not None:
        raise UnsupportedLayerError(f"layer '{call.name}' has a padding mask; leave padded places out of the sequence")
    layer, name, x = call.layer, call.name, options["src"]

    def norm(which: nn.LayerNorm, value: Shared) -> Shared:
        return layer_norm(lowering, name, value, 1, which.weight, which.bias, which.eps)

    def attend(value: Shared) -> Shared:
        return attention(lowering, f"{name}.self_attn", layer.self_attn, value, value, value, options["src_mask"])

    def feed(value: Shared) -> Shared:
        inner = linear(lowering, f"{name}.linear1", value, layer.linear1.weight, layer.linear1.bias)
        inner = _activation(lowering, name, layer.activation, inner)
        return linear(lowering, f"{name}.linear2", inner, layer.linear2.weight, layer.linear2.bias)

    if layer.norm_first:
        x = add(lowering, name, x, attend(norm(layer.norm1, x)), x.shape)
        return add(lowering, name, x, feed(norm(layer.norm2, x)), x.shape)
    x = norm(layer.norm1, add(lowering, name, x, attend(x), x.shape))
    return norm(layer.norm2, add(lowering, name, x, feed(x), x.shape))


def _activation(lowering: Lowering, name: str, function: Any, x: Shared) -> Shared:
    if function is F.relu or isinstance(function, nn.ReLU):
        return relu(lowering, f"{name}.activation", x)
    if function is F.gelu or isinstance(function, nn.GELU):
        return bend(lowering, f"{name}.activation", x, "gelu")
    raise UnsupportedLayerError(f"layer '{name}' has an activation of its own; use 'relu' or 'gelu'")


_MODULES: dict[type[nn.Module], Lower] = {
    nn.MultiheadAttention: _multihead,
    nn.TransformerEncoderLayer: _encoder_layer,
}
_FUNCTIONS: dict[Any, Lower] = {F.scaled_dot_product_attention: _scaled_dot_product}
LOWERINGS.register("attention")(Tables(_MODULES, _FUNCTIONS, {}))
