"""What is known of a model before anything is loaded: its profiles, and its checkpoint where there is one."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rerank_cli.checkpoint import Checkpoint, locate_checkpoint, read_checkpoint
from rerank_cli.checkpoint.families import family_of
from rerank_cli.checkpoint.max_tokens import model_max_tokens
from rerank_cli.errors import ModelError
from rerank_cli.planning.memory import MemoryModel
from rerank_cli.planning.profiles import (
    GENERIC_PRECISIONS,
    GenericFacts,
    ModelProfiles,
    find_profiles,
    load_profiles,
)
from rerank_cli.storage import is_url


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model's name, profiles and checkpoint.

    reason: where its profiles come from. checkpoint: None where its profile file is enough.
    """

    name: str
    profiles: ModelProfiles | GenericFacts
    reason: str
    checkpoint: Checkpoint | None = None

    @property
    def max_tokens(self) -> int:
        """The longest pair."""
        facts = self.profiles.model if isinstance(self.profiles, ModelProfiles) else self.profiles
        return facts.max_tokens

    def memory_model(self) -> MemoryModel:
        """What its memory is counted from: its checkpoint, else its profile file; `ModelError` where neither tells."""
        if self.checkpoint is not None:
            return MemoryModel.of_checkpoint(self.checkpoint)
        assert isinstance(self.profiles, ModelProfiles), "a model without a checkpoint has a profile file"
        return MemoryModel.of_profile(self.profiles.model)

    def to_json(self) -> dict[str, Any]:
        """Name, architecture, and the file of its profiles where there is one."""
        if isinstance(self.profiles, ModelProfiles):
            architecture, file = self.profiles.model.architecture, self.profiles.file
            return {"name": self.name, "architecture": architecture, "profiles": file}
        return {"name": self.name, "architecture": self.checkpoint and self.checkpoint.architecture, "profiles": None}


def find_model(
    model: str | None, *, revision: str | None = None, online: bool = False, profiles_file: str | None = None
) -> KnownModel:
    """The profiles of a model: a checkpoint's folder, an id, or (None) the built-in model.

    An id with a profile file needs no checkpoint, and none is downloaded for it; where the local Hugging Face cache has
    one, its facts count. online: may download another. profiles_file: takes the place of the shipped profiles. Raises
    `ModelError` or `ProfileError`.
    """
    if profiles_file is not None:
        given = load_profiles(Path(profiles_file))
        return KnownModel(model or given.model.id, given, f"profiles of {given.model.id}: {given.file}")
    is_id = model is not None and not model.startswith((".", "/", "~")) and not is_url(model)
    if model is not None and is_id and not Path(model).is_dir():
        found, why = find_profiles(model)
        if found is not None:
            known = KnownModel(model, found, why)
            cached = _cached_checkpoint(model, revision)
            return known if cached is None else with_checkpoint(known, cached)
    checkpoint = read_checkpoint(locate_checkpoint(model, revision=revision, online=online), name=model)
    hidden_size = _read_whole_number(checkpoint, "hidden_size")
    found, why = find_profiles(
        model,
        architecture=checkpoint.architecture,
        layers=_read_whole_number(checkpoint, "num_hidden_layers"),
        hidden_size=hidden_size,
    )
    generic = GenericFacts(
        checkpoint.name, model_max_tokens(checkpoint), _gpu_precisions(checkpoint), hidden_size=hidden_size
    )
    return with_checkpoint(KnownModel(checkpoint.name, found or generic, why), checkpoint)


def with_checkpoint(known: KnownModel, checkpoint: Checkpoint) -> KnownModel:
    """The model with its checkpoint, whose own limit of tokens the profiles then keep."""
    profiles, limit = known.profiles, model_max_tokens(checkpoint)
    if isinstance(profiles, ModelProfiles) and limit < profiles.model.max_tokens:
        profiles = replace(
            profiles,
            model=replace(profiles.model, max_tokens=limit),
            profiles=tuple(replace(one, max_tokens=min(limit, one.max_tokens)) for one in profiles.profiles),
        )
        why = f"{known.reason}; the checkpoint reads at most {limit} tokens"
        return replace(known, profiles=profiles, reason=why, checkpoint=checkpoint)
    return replace(known, checkpoint=checkpoint)


def with_choices(known: KnownModel, *, label: int | None, taken_as: str | None) -> KnownModel:
    """The model with the user's label and family (`taken_as`); unchanged where its checkpoint is not here."""
    if known.checkpoint is None:
        return known
    checkpoint = replace(known.checkpoint, label=label, taken_as=taken_as)
    if taken_as and isinstance(known.profiles, GenericFacts):  # the limit of tokens depends on the family
        known = replace(known, profiles=replace(known.profiles, max_tokens=model_max_tokens(checkpoint)))
    return replace(known, checkpoint=checkpoint)


def _cached_checkpoint(model: str, revision: str | None) -> Checkpoint | None:
    """The checkpoint of an id in the local Hugging Face cache, if it is there and whole."""
    # The folder is looked for here because huggingface_hub, which knows where it is, takes 0.1 s to import. The order
    # of the variables is that of its `constants.py`.
    hub = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if not hub:
        caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        hub = (os.environ.get("HF_HOME") or f"{caches}/huggingface") + "/hub"
    if not (Path(hub).expanduser() / f"models--{model.replace('/', '--')}").is_dir():
        return None
    try:
        return read_checkpoint(locate_checkpoint(model, revision=revision), name=model)
    except ModelError:
        return None  # not whole; the profile file has what is needed, and a run will say what is missing


def _gpu_precisions(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What a GPU runs the model in, the default first: bf16 for one that was trained in it.

    Its numbers may leave the range of fp16, and what overflows is computed a second time, in fp32. A model is taken for
    one where config.json says so or most of its weights are stored so, and where its family is known for it.
    """
    stored: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        stored[tensor.dtype] += tensor.size_bytes
    declared = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")
    in_bf16 = declared == "bfloat16" or [kind for kind, _ in stored.most_common(1)] == ["BF16"]
    if in_bf16 or family_of(checkpoint.architecture).leaves_fp16:
        return ("bf16", *(precision for precision in GENERIC_PRECISIONS if precision != "bf16"))
    return GENERIC_PRECISIONS


def _read_whole_number(checkpoint: Checkpoint, key: str) -> int | None:
    value = checkpoint.config.get(key)
    return value if isinstance(value, int) else None
