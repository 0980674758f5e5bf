"""A model's files: what they say about it, before a weight is read."""

from rerank_cli.checkpoint.read import (
    BUILTIN_MODEL,
    Checkpoint,
    locate_checkpoint,
    read_checkpoint,
)
from rerank_cli.checkpoint.safetensors_header import TensorInfo, read_safetensors_header

__all__ = [
    "BUILTIN_MODEL",
    "Checkpoint",
    "TensorInfo",
    "locate_checkpoint",
    "read_checkpoint",
    "read_safetensors_header",
]
