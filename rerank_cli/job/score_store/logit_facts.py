"""Everything that decides the logit of a pair but the pair itself, or the vector of a text, and nothing else.

The model's files by their content, how pairs are written and cut, what computes: precision, kernels, device, versions.
Not which engines there are, how large batches or windows are, what becomes of the scores. Two runs with the same facts
give a pair one logit, bit for bit where `depends_on_batch` has nothing to say.

What only some runs depend on is a fact of those alone: chunks where passages are cut in chunks, images where the model
reads images, threads where the order of a sum goes by them.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

import rerank_cli
from rerank_cli.checkpoint.families import FAMILIES, family_of
from rerank_cli.encoding.encoder import ReadsImages
from rerank_cli.job.options import JobOptions
from rerank_cli.job.prepare import PreparedModel
from rerank_cli.machine.libraries import version_of
from rerank_cli.planning.run_plan import Plan

_LIBRARIES = ("torch", "tokenizers", "transformers", "safetensors", "numpy")
# What moves kernels of torch, oneDNN and MKL from outside.
_SWITCHES = ("ONEDNN_", "DNNL_", "MKL_", "ATEN_", "TORCH_", "PYTORCH_", "NVIDIA_TF32_", "CUBLAS_", "CUDNN_")
_BESIDE_KERNELS = re.compile(r", calibrated on \d+ pairs|; \d+ processes$")  # what engines add for people
_IDLE_SWITCHES = ("_CACHE", "VERBOSE", "_LOG")  # this program sets one for its commands, and none for Python programs
_SUMS_GO_BY_THREADS = ("bf16", "int8")


def logit_facts(options: JobOptions, prepared: PreparedModel, plan: Plan, kernels: str) -> dict[str, Any]:
    """The facts, as JSON has them.

    Args:
        options: Of the run.
        prepared: Its model.
        plan: As the run goes.
        kernels: Of its engine, before anything is scored.
    """
    encoder = prepared.encoder
    facts = {
        **vector_facts(prepared, plan, kernels),
        "score": prepared.score,
        "template": encoder.template,
        "max_tokens": plan.max_tokens,
        **{name: getattr(options, name) for name in ("truncate", "special_tokens", "instruction", "label")},
        **{name: getattr(options, name) for name in ("taken_as", "max_unknown")},
    }
    if options.truncate == "chunk":
        facts |= {"chunk_overlap": options.chunk_overlap, "pool": options.pool}
    if isinstance(encoder, ReadsImages):
        facts |= {"images": [encoder.max_tiles, options.images.max_pixels]}
    return facts


def vector_facts(prepared: PreparedModel, plan: Plan, kernels: str) -> dict[str, Any]:
    """What decides the numbers that a model gives for token ids and tiles; else as `logit_facts`."""
    import torch  # it is there by now

    checkpoint, cpu = prepared.checkpoint, prepared.machine.cpu
    facts: dict[str, Any] = {
        "model": checkpoint.sha256,
        "precision": plan.precision,
        "attention": plan.attention,
        "kernels": _BESIDE_KERNELS.sub("", kernels),
        "versions": {
            "rerank-cli": rerank_cli.__version__,
            "unicode": unicodedata.unidata_version,
            **{name: version_of(name) for name in _LIBRARIES},
        },
        "switches": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(_SWITCHES) and not any(idle in name for idle in _IDLE_SWITCHES)
        },
    }
    if isinstance(prepared.encoder, ReadsImages):
        facts["pillow"] = version_of("pillow")
    if plan.device == "cpu":
        facts["cpu"] = [cpu.name, platform.machine(), sorted(cpu.flags), torch.backends.cpu.get_cpu_capability()]
        if plan.precision in _SUMS_GO_BY_THREADS:
            facts["threads"] = max(1, plan.threads // max(1, plan.lanes))
    else:
        named = [device.name for device in prepared.machine.devices if f"cuda:{device.cuda_index}" in plan.engines]
        facts["gpu"] = [sorted(set(named)), torch.version.cuda]
    return facts


def depends_on_batch(prepared: PreparedModel, plan: Plan) -> str | None:
    """Why a logit, or a vector, can differ in its last digit with what it is computed with; None where it cannot.

    Measured on a CPU for every family: `tests/parity/test_batch_invariance.py`; of embedders in the published widths
    too (a layer of 2,048 and 8,192 channels and one of the tower, batches of 1 to 40, one and two threads, torch 2.13):
    the same to the bit in fp32, and not in bf16.
    """
    architecture = prepared.checkpoint.architecture
    family = family_of(architecture)
    if plan.device != "cpu":
        return "a GPU sums in an order that goes by the batch"
    if family.embeds:
        return None if plan.precision == "fp32" else f"a vector in {plan.precision} goes by the batch"
    if family.decoder or family.prompted:
        return "a language model's logit goes by the batch"
    if architecture not in FAMILIES:
        return "transformers pads pairs to the longest of their batch"
    return None


def basis_of(facts: Mapping[str, Any], calibration: Mapping[str, Any] | str | None) -> bytes:
    """A digest of the facts.

    Args:
        facts: See `logit_facts`.
        calibration: Of an int8 model, which decides how it is rounded; a word for what is no score.
    """
    text = json.dumps({**facts, "calibration": calibration}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
