"""Everything that decides the logit of a pair except the pair itself, or the vector of a text, and nothing else.

These facts are the content of the model's files, how pairs are written and cut, and what computes: precision, kernels,
device, versions. The number of engines, the size of batches and windows, and what is done with the scores are no facts.
Two runs with the same facts give a pair the same logit; bit for bit, unless `depends_on_batch` gives a reason.

A fact is left out if a run cannot depend on it: chunks count only if passages are cut into chunks, images only if the
model reads images, threads only if they decide the order of a sum.
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
# Environment variables that change the kernels of torch, oneDNN and MKL.
_SWITCHES = ("ONEDNN_", "DNNL_", "MKL_", "ATEN_", "TORCH_", "PYTORCH_", "NVIDIA_TF32_", "CUBLAS_", "CUDNN_")
_BESIDE_KERNELS = re.compile(r", calibrated on \d+ pairs|; \d+ processes$")  # added for people; not a fact
_IDLE_SWITCHES = ("_CACHE", "VERBOSE", "_LOG")  # no facts; the command line sets one, the Python API none
_SUMS_GO_BY_THREADS = ("bf16", "int8")


def logit_facts(options: JobOptions, prepared: PreparedModel, plan: Plan, kernels: str) -> dict[str, Any]:
    """The facts, as values for JSON.

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
    import torch  # late, because it takes seconds; an engine has loaded it by now

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
    """Why the last digit of a logit, or of a vector, can depend on the rest of its batch; None if it cannot.

    Measured on a CPU for every family: `tests/parity/test_batch_invariance.py`. For embedders also in the published
    widths (a layer of 2,048 and 8,192 channels and one of the tower, batches of 1 to 40, one and two threads, torch
    2.13): the same to the bit in fp32, not in bf16.
    """
    architecture = prepared.checkpoint.architecture
    family = family_of(architecture)
    if plan.device != "cpu":
        return "the order of a GPU's sums depends on the batch"
    if family.embeds:
        return None if plan.precision == "fp32" else f"a vector in {plan.precision} depends on its batch"
    if family.decoder or family.prompted:
        return "a language model's logit depends on its batch"
    if architecture not in FAMILIES:
        return "transformers pads pairs to the longest of their batch"
    return None


def basis_of(facts: Mapping[str, Any], calibration: Mapping[str, Any] | str | None) -> bytes:
    """A digest of the facts.

    Args:
        facts: See `logit_facts`.
        calibration: Of an int8 model: it decides how the model rounds. A word makes the key of something else.
    """
    text = json.dumps({**facts, "calibration": calibration}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
