"""The layers of a common decoder on a CPU: fewer passes over memory, with oneDNN's fused products, for inference alone.

In: hidden states of packed tokens, and the attention to use. Out: what leaves the layers. A small model spends most of its
time not on products of matrices but between them; here activation, gate and residual are applied while a product is
written, queries, keys and values are one product, and norms and rotations take half the passes. Weights are repacked once,
which holds them in memory a second time. Decoders of other kinds, other devices and training take transformers' way.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch

# what they compute is known: pre-norm with RMSNorm, rotary attention, SiLU-gated MLP; Qwen3 normalises queries and keys too
LAYERS = ("LlamaDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
"""Queries [N, H, d], keys and values [N, K, d], and the scale of their products; gives [N, H, d]."""

_allowed = True
_packed: WeakKeyDictionary[Any, tuple[Any, "Layer"]] = WeakKeyDictionary()


class Layer:
    """One layer with its weights in oneDNN's order."""

    def __init__(self, layer: Any) -> None:
        """Repack the weights of a transformers layer."""
        attention, mlp = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.qkv = _pack(torch.cat([part.weight for part in projections]))
        biases = [part.bias for part in projections]
        self.qkv_bias = None if biases[0] is None else torch.cat(biases)
        self.out, self.gate, self.up, self.down = (
            _pack(part.weight) for part in (attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        )
        self.norms = layer.input_layernorm, layer.post_attention_layernorm
        self.query_norm, self.key_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        self.head_dim, self.scaling = attention.head_dim, attention.scaling
        self.n_query, self.n_key = (part.out_features // self.head_dim for part in projections[:2])

    def __call__(
        self, x_ND: torch.Tensor, cos_N1d: torch.Tensor, sin_N1d: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        """What leaves the layer, [N, D]."""
        linear = torch.ops.mkldnn._linear_pointwise
        qkv = linear(_rms_norm(self.norms[0], x_ND), self.qkv, self.qkv_bias, "none", [], "")
        qkv_NHd = qkv.view(len(x_ND), -1, self.head_dim)
        if self.query_norm is None:
            turned_NHd = _rotated(qkv_NHd[:, : self.n_query + self.n_key], cos_N1d, sin_N1d)
            query_NHd, key_NKd = turned_NHd.split([self.n_query, self.n_key], dim=1)
        else:
            query_NHd, key_NKd, _ = qkv_NHd.split([self.n_query, self.n_key, self.n_key], dim=1)
            query_NHd = _rotated(_rms_norm(self.query_norm, query_NHd), cos_N1d, sin_N1d)
            key_NKd = _rotated(_rms_norm(self.key_norm, key_NKd), cos_N1d, sin_N1d)
        attended_NHd = attend(query_NHd, key_NKd, qkv_NHd[:, self.n_query + self.n_key :], self.scaling)
        x_ND = linear.binary(attended_NHd.flatten(1), x_ND, self.out, None, "add")
        normal_ND = _rms_norm(self.norms[1], x_ND)
        gate_NI = linear(normal_ND, self.gate, None, "swish", [1.0], "")
        gated_NI = linear.binary(normal_ND, gate_NI, self.up, None, "mul")
        return linear.binary(gated_NI, x_ND, self.down, None, "add")


def can_run(decoder: Any) -> bool:
    """Whether `forward` computes what the decoder computes, here and now."""
    layers = decoder.layers
    weight: torch.Tensor = decoder.embed_tokens.weight
    if not _allowed or torch.is_grad_enabled() or not len(layers) or not _has_products(weight.dtype):
        return False
    config = decoder.config
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        weight.device.type == "cpu"
        and getattr(config, "hidden_act", None) == "silu"
        and rope.get("partial_rotary_factor", 1.0) == 1.0
        and all(_is_plain(layer) for layer in layers)
    )


def forward(decoder: Any, x_ND: torch.Tensor, position_N: torch.Tensor, attend: Attend) -> torch.Tensor:
    """Run a decoder's layers and its final norm; see `can_run`.

    Args:
        decoder: A transformers decoder in evaluation mode.
        x_ND: What enters its first layer.
        position_N: Of each token, for the rotations.
        attend: Attention among the N tokens.
    """
    cos_1Nd, sin_1Nd = decoder.rotary_emb(x_ND[None], position_N[None])
    first, second = sin_1Nd[0, :, None].chunk(2, dim=-1)
    sin_N1d = torch.cat([-first, second], dim=-1)
    for layer in decoder.layers:
        x_ND = _layer(layer)(x_ND, cos_1Nd[0, :, None], sin_N1d, attend)
    return decoder.norm(x_ND)


@contextmanager
def off() -> Iterator[None]:
    """Within the block no decoder is run this way: for measurements and checks."""
    global _allowed
    before, _allowed = _allowed, False
    try:
        yield
    finally:
        _allowed = before


def _has_products(dtype: torch.dtype) -> bool:
    """Whether oneDNN's fused products are there, switched on, and know this dtype; Arm's library has only some of them."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    known = dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return known and not torch.ops.mkldnn._is_mkldnn_acl_supported()


def _is_plain(layer: Any) -> bool:
    """Of a known kind, not wrapped by adapters, attending to everything, and without the biases that `Layer` leaves out."""
    if type(layer).__name__ not in LAYERS or layer.self_attn.__dict__.get("sliding_window") is not None:
        return False
    parts = [part for part in layer.modules() if next(part.children(), None) is None]
    linear: Sequence[Any] = [part for part in parts if isinstance(part, torch.nn.Linear)]
    others = [layer.self_attn.o_proj, layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj]
    return (
        len(linear) == 7
        and all(type(part) is torch.nn.Linear for part in linear)
        and not any(p.bias is not None for p in others)
    )


def _layer(layer: Any) -> Layer:
    """The repacked layer, made anew when its weights have changed."""
    seen = [(weight.data_ptr(), weight._version) for weight in layer.parameters()]
    if layer not in _packed or _packed[layer][0] != seen:
        _packed[layer] = seen, Layer(layer)
    return _packed[layer][1]


def _pack(weight: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)


def _rms_norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_().div_(x.shape[-1])
    return x.mul(square.add_(norm.variance_epsilon).rsqrt_().to(x.dtype)).mul_(norm.weight)


def _rotated(x_NHd: torch.Tensor, cos_N1d: torch.Tensor, sin_N1d: torch.Tensor) -> torch.Tensor:
    """Rotary positions; the first half of `sin` is negated already."""
    half = x_NHd.shape[-1] // 2
    turned_NHd = x_NHd * cos_N1d
    turned_NHd[..., :half].addcmul_(x_NHd[..., half:], sin_N1d[..., :half])
    turned_NHd[..., half:].addcmul_(x_NHd[..., :half], sin_N1d[..., half:])
    return turned_NHd
