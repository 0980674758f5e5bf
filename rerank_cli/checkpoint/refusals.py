"""Folders that are no reranker of ours, refused by what they are, before a tokenizer, memory or torch is thought of.

In this order: weights of a kind that is not read, an adapter, an architecture, modules, code of the checkpoint. What
is wrong inside one of these is told where it is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rerank_cli.checkpoint.declared import Declaration
from rerank_cli.checkpoint.families import FAMILIES, is_known
from rerank_cli.errors import ModelError

_ADAPTER = "adapter_config.json"
_SAFE = "the *.safetensors of the model are needed"


def refuse_weights(root: Path) -> None:
    """Weights that are not read, or that are not all of the model."""
    own = [file for file in _files(root, ".safetensors") if not file.name.startswith("adapter_")]
    adapter = (root / _ADAPTER).is_file()
    if not own and not adapter:
        for suffix, kind in ((".gguf", "GGUF"), (".onnx", "ONNX")):
            if found := _files(root, suffix):
                names = ", ".join(f"`{file.relative_to(root)}`" for file in found[:3])
                raise ModelError(f"{root}: {kind} only ({names}): {_SAFE}", hint="name the repository that has them")
    if adapter:
        beside = "beside the weights of its base model, which alone are another model" if own else "without a model"
        raise ModelError(
            f"{root}: a LoRA adapter ({_ADAPTER}) {beside}: merge it first",
            hint="`PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)`, and the "
            "tokenizer beside it",
        )


def refuse_architecture(root: Path, config: Mapping[str, Any]) -> None:
    """A model whose class is not known here, and not to transformers either."""
    names = config.get("architectures")
    if isinstance(names, list) and len(names) == 1 and isinstance(names[0], str) and not is_known(names[0]):
        raise ModelError(
            f"{root / 'config.json'}: architecture `{names[0]}` is not a reranker that is known",
            hint=f"known are {', '.join(sorted(FAMILIES))} and the sequence classifiers of transformers",
        )


def refuse_modules(root: Path, config: Mapping[str, Any], declared: Declaration) -> None:
    """Modules that give a vector where the model is no embedder of ours, or a score that is not this model's."""
    names = config.get("architectures")
    architecture = names[0] if isinstance(names, list) and names else None
    family = FAMILIES.get(architecture) if isinstance(architecture, str) else None
    if family is not None and family.headless and not declared.modules:
        raise ModelError(
            f"{root / 'config.json'}: an embedding model: {architecture} has no head, and no modules.json declares one",
            hint="a reranker is needed, for example a ...ForSequenceClassification",
        )
    if not declared.listed or not isinstance(architecture, str):
        return
    place = root / "modules.json"
    if declared.embeds:
        if family is None or not family.embeds:
            chain = ", ".join(type(module).__name__ for module in declared.modules)
            raise ModelError(
                f"{place}: an embedding model: its modules ({chain}) give a vector, and no score of a pair",
                hint="a reranker is needed; an embedding model ranks by itself in a library of its own",
            )
        return
    if family is not None and family.embeds:
        raise ModelError(f"{place}: {architecture} is an embedding model, and its modules give no vector")
    language = architecture.endswith("ForCausalLM")
    if (declared.logit_score is not None) != language or (language and declared.head):
        raise ModelError(
            f"{place}: {architecture} gives no score with the modules "
            f"{', '.join(['Transformer', *(type(module).__name__ for module in declared.modules)])}",
            hint="a LogitScore follows a ...ForCausalLM, and only that",
        )


def refuse_code(root: Path, config: Mapping[str, Any], declared: Declaration) -> None:
    """A language model whose code says how it is scored."""
    names = config.get("architectures")
    language = isinstance(names, list) and any(str(name).endswith("ForCausalLM") for name in names)
    if declared.listed or not language:
        return
    code = sorted(file.name for file in root.glob("*.py"))
    if code or config.get("auto_map"):
        told = ", ".join(f"`{name}`" for name in code) or "`auto_map` in config.json"
        raise ModelError(
            f"{root}: {told} says how this language model is scored, and code of a checkpoint is never run",
            hint="a folder with modules.json, or one that was saved without code, can be read",
        )


def _files(root: Path, suffix: str) -> list[Path]:
    return sorted(file for file in root.rglob(f"*{suffix}") if file.is_file())
