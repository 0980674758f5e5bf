"""Llama cross-encoders as they are run without packing: transformers' LlamaModel over padded batches, SDPA.

Pairs are sorted by length, as CrossEncoder sorts them; every token sees every real one; the final hidden states are
averaged and go through one linear layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaModel


def llama_of(config: dict[str, Any], *, device: str, dtype: torch.dtype) -> LlamaModel:
    """The model of a config.json, with random weights."""
    with torch.device(device):
        model = LlamaModel(LlamaConfig(**{key: value for key, value in config.items() if key != "architectures"}))
    return model.to(dtype).eval()


def load_weights(model: LlamaModel, checkpoint: Path) -> torch.Tensor:
    """Give the model the weights of a cross-encoder's checkpoint; returns its head, [1, hidden] in float32."""
    tensors = load_file(checkpoint / "model.safetensors")
    head = tensors.pop("score.weight").float()
    model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    return head


@torch.inference_mode()
def score_padded(
    model: LlamaModel,
    head: torch.Tensor,
    ids: Sequence[Sequence[int]],
    *,
    batch_size: int,
    on_batch: Callable[[torch.Tensor], None] | None = None,
) -> list[float]:
    """Logits of pairs of token ids. on_batch: is given each batch's mask, 1 for a real token."""
    order = sorted(range(len(ids)), key=lambda place: len(ids[place]), reverse=True)
    logits = [0.0] * len(ids)
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        some, real = _pad([ids[place] for place in places], model.device)
        if on_batch:
            on_batch(real)
        mask = real[:, None, None, :].expand(-1, 1, real.shape[1], -1)  # every token sees every real one
        hidden = model(input_ids=some, attention_mask=mask, use_cache=False).last_hidden_state.float()
        means = (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True)
        for place, logit in zip(places, (means @ head.T).squeeze(1).tolist(), strict=True):
            logits[place] = logit
    return logits


def _pad(ids: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and which of them are real, both [pairs, longest]; the longest comes first."""
    lengths = torch.tensor([len(one) for one in ids])
    padded = torch.zeros(len(ids), len(ids[0]), dtype=torch.int64)
    for row, one in zip(padded, ids, strict=True):
        row[: len(one)] = torch.as_tensor(one)
    real = torch.arange(len(ids[0])) < lengths[:, None]
    return padded.to(device), real.to(device)
