"""What config.json says of a Llama model: sizes, switches, kind and frequencies of RoPE, pooling, temperature.

Source: transformers' configuration_llama.py and modeling_rope_utils.py, and NVIDIA NeMo AutoModel's
llama_bidirectional/model.py. `temperature` comes from the file as it stands there: transformers 4 resets it to 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.errors import ModelError
from rerank_cli.models.linear import activation

Pooling = Literal["avg", "cls", "last"]
_POOLINGS: tuple[Pooling, ...] = ("avg", "cls", "last")
_ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """Sizes and switches of a Llama model, from config.json.

    frequencies: of the rotary positions, radians a token, float32 [head_size / 2]. head_norms: queries and keys are
    normalised, each head by itself. norm_offset: what is added to the weights of the norms. embedding_scale: what
    embeddings are multiplied by.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    epsilon: float
    activation: str
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    causal: bool
    frequencies: Tensor
    head_norms: bool = False
    norm_offset: float = 0.0
    embedding_scale: float = 1.0


def read_pooling(checkpoint: Checkpoint, default: Pooling) -> Pooling:
    """How config.json says that a pair's tokens become one vector."""
    named = checkpoint.config.get("pooling", default)
    for pooling in _POOLINGS:
        if named == pooling:
            return pooling
    raise ModelError(
        f"{checkpoint.config_place}: `pooling` is not known: {named!r}",
        hint=f"known are {', '.join(_POOLINGS)}",
    )


def read_temperature(checkpoint: Checkpoint) -> float:
    """What the logit is divided by."""
    temperature = checkpoint.number("temperature", 1.0)
    if not (math.isfinite(temperature) and temperature > 0):
        raise ModelError(f"{checkpoint.config_place}: `temperature` must be above 0: {temperature}")
    return temperature


def read_llama_shape(checkpoint: Checkpoint, *, activation_default: str = "silu") -> LlamaShape:
    """Sizes and switches from config.json; `ModelError` naming the key for what is not a Llama of this kind."""
    where = checkpoint.config_place
    hidden, heads = checkpoint.integer("hidden_size"), checkpoint.integer("num_attention_heads")
    config = {key: value for key, value in checkpoint.config.items() if value is not None}
    if heads < 1:
        raise ModelError(f"{where}: `num_attention_heads` must be at least 1: {heads}")
    head_size = checkpoint.integer("head_dim") if "head_dim" in config else hidden // heads
    kv_heads = checkpoint.integer("num_key_value_heads") if "num_key_value_heads" in config else heads
    layers = checkpoint.integer("num_hidden_layers")
    if kv_heads < 1 or heads % kv_heads:
        raise ModelError(f"{where}: `num_key_value_heads` {kv_heads} does not divide `num_attention_heads` {heads}")
    if layers < 1 or hidden < 1 or head_size < 2 or head_size % 2:
        raise ModelError(
            f"{where}: `num_hidden_layers` {layers}, `hidden_size` {hidden} and `head_dim` {head_size} do not fit "
            "together"
        )
    name = checkpoint.text("hidden_act", activation_default)
    activation(name, where=where)
    return LlamaShape(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        intermediate=checkpoint.integer("intermediate_size"),
        vocabulary=checkpoint.integer("vocab_size"),
        epsilon=checkpoint.number("rms_norm_eps", 1e-6),
        activation=name,
        qkv_bias=read_switch(checkpoint, "attention_bias"),
        out_bias=read_switch(checkpoint, "attention_bias"),
        mlp_bias=read_switch(checkpoint, "mlp_bias"),
        causal=read_switch(checkpoint, "is_causal"),
        frequencies=_read_frequencies(checkpoint, head_size),
    )


def read_switch(checkpoint: Checkpoint, key: str) -> bool:
    """A boolean of config.json; false where it is missing or null."""
    value = checkpoint.config.get(key)
    if value is not None and not isinstance(value, bool):
        raise ModelError(f"{checkpoint.config_place}: `{key}` must be true or false: {value!r}")
    return bool(value)


def _read_frequencies(checkpoint: Checkpoint, head_size: int) -> Tensor:
    """Radians a token of each pair of channels, float32 [head_size / 2].

    Old configs write `rope_theta` and `rope_scaling`, new ones `rope_parameters` with both; the old key wins, as in
    transformers.
    """
    where = checkpoint.config_place
    key = "rope_scaling" if checkpoint.config.get("rope_scaling") else "rope_parameters"
    parameters = checkpoint.config.get(key) or {}
    if not isinstance(parameters, dict):
        raise ModelError(f"{where}: `{key}` must be an object: {parameters!r}")
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in _ROPE_TYPES:
        raise ModelError(
            f"{where}: `rope_type` of `{key}` is not known: {kind!r}", hint=f"known are {', '.join(_ROPE_TYPES)}"
        )
    for holder in (checkpoint.config, parameters):
        if holder.get("partial_rotary_factor", 1.0) not in (1.0, None):
            raise ModelError(f"{where}: `partial_rotary_factor` is not supported: {holder['partial_rotary_factor']!r}")
    top = checkpoint.config.get("rope_theta")
    theta = _number({"rope_theta": 10_000.0 if top is None else top, **parameters}, "rope_theta", where)
    exponents = torch.arange(0, head_size, 2, dtype=torch.float32) / head_size
    frequencies = 1.0 / theta**exponents
    if kind == "linear":
        return frequencies / _number(parameters, "factor", where)
    return _scale_as_llama3(frequencies, parameters, checkpoint) if kind == "llama3" else frequencies


def _number(values: Mapping[str, Any], key: str, where: str) -> float:
    """A finite number above 0 under `key`."""
    value = values.get(key)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    raise ModelError(f"{where}: `{key}` must be a number above 0: {value!r}")


def _scale_as_llama3(frequencies: Tensor, parameters: Mapping[str, Any], checkpoint: Checkpoint) -> Tensor:
    """Long wavelengths are stretched by `factor`, short ones stay, those between are a mixture of both."""
    where = checkpoint.config_place
    values = {"original_max_position_embeddings": checkpoint.config.get("max_position_embeddings"), **parameters}
    factor, low, high, trained = (
        _number(values, key, where)
        for key in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    if low >= high:
        raise ModelError(f"{where}: `low_freq_factor` {low} must be below `high_freq_factor` {high}")
    wavelengths = 2 * math.pi / frequencies
    share = (trained / wavelengths - low) / (high - low)
    mixed = (1 - share) * frequencies / factor + share * frequencies
    scaled = torch.where(wavelengths > trained / low, frequencies / factor, mixed)
    return torch.where(wavelengths < trained / high, frequencies, scaled)
