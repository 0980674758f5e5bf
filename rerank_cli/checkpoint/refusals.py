"""Refuses folders without a reranker that can be scored (Git LFS pointers, pickles, adapters), before loading anything.

In this order: pointers of Git LFS, weights that are not read, an adapter, modules of another kind of model, an
architecture, how the modules score, code of the checkpoint, quantisation, pickle. `other_models.py` has the names.
Errors inside one of these files are reported where the file is read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NoReturn

from rerank_cli.checkpoint import other_models
from rerank_cli.checkpoint.declared import Declaration, module_types
from rerank_cli.checkpoint.families import BERT_LIKE, FAMILIES, Family, is_known
from rerank_cli.checkpoint.json_file import read_json_file
from rerank_cli.errors import ModelError

_MODEL_SUFFIXES = {".json", ".safetensors", ".txt", ".model", ".jinja"}  # of files that are read

_ADAPTER = "adapter_config.json"
_ADAPTER_WEIGHTS = ("adapter_model*.safetensors", "adapter_model*.bin")
_ROBERTAS = {"camembert", "roberta", "xlm-roberta"}  # one model; they differ in their tokenizers
_TYPES = {
    "Bert": {"bert"}, "Camembert": _ROBERTAS, "Electra": {"electra"}, "Gemma": {"gemma"}, "Llama": {"llama"},
    "Mistral": {"mistral"}, "ModernBert": {"modernbert"}, "Qwen2": {"qwen2"}, "Qwen3": {"qwen3"}, "Roberta": _ROBERTAS,
    "XLMRoberta": _ROBERTAS,
}  # fmt: skip
"""`model_type` of the trunks that have a model here."""
_WANTED = "a reranker is needed, for example a ...ForSequenceClassification"
_POINTER = b"version https://git-lfs.github.com/spec/"
_MAX_POINTER_BYTES = 1024
_DEPTH, _MOST_ENTRIES = 3, 10_000  # how far a folder is searched: a checkpoint is smaller, a home folder larger
_SHOWN = 3


def refuse_special_files(root: Path) -> None:
    """Refuse a pipe, socket or device among the model's files: opening it could block for ever."""
    for path in (root / name for name in _walk_entries(root)):
        if path.suffix in _MODEL_SUFFIXES and path.exists() and not path.is_file() and not path.is_dir():
            raise ModelError(f"{path}: not a regular file", hint="copy the model's files into a folder of their own")


def refuse_pointers(root: Path, model: Path) -> None:
    """Refuse pointers of Git LFS in place of files that are read. model: the model's own folder, in `root`."""
    files = [file for folder in dict.fromkeys((root, model)) for file in sorted(folder.glob("*"))]
    for file in files:
        if file.suffix not in _MODEL_SUFFIXES or not file.is_file() or file.stat().st_size > _MAX_POINTER_BYTES:
            continue
        with file.open("rb") as stream:
            begin = stream.read(len(_POINTER))
        if begin == _POINTER:
            raise ModelError(
                f"{file}: a pointer of Git LFS, and not the file", hint="`git lfs pull` in the folder brings the files"
            )


def refuse_weights(root: Path, model: Path) -> None:
    """Refuse weights of other formats, and adapters. model: the model's own folder, in `root`."""
    adapter = next((folder for folder in (root, model) if (folder / _ADAPTER).is_file()), None)
    weights = sorted({file.name for folder in (root, model) for one in _ADAPTER_WEIGHTS for file in folder.glob(one)})
    own = [file for file in model.glob("*.safetensors") if not any(fnmatch(file.name, one) for one in _ADAPTER_WEIGHTS)]
    if adapter or weights:
        beside = "beside the weights of its base model, which alone are another model" if own else "without a model"
        kind = read_json_file(adapter / _ADAPTER).get("peft_type") if adapter else None
        kind = kind if isinstance(kind, str) and kind != "LORA" else "LoRA"
        names = _ADAPTER if adapter else f"{', '.join(weights)}, without the {_ADAPTER} that says what to do with it"
        raise ModelError(
            f"{root}: {'an' if kind[:1] in 'AEIO' else 'a'} {kind} adapter ({names}) {beside}: merge it first",
            hint="`PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)`, and the "
            "tokenizer beside it",
        )
    if own:
        return
    found = list(_walk_entries(root))
    if any(fnmatch(Path(name).name, "pytorch_model*.bin") for name in found):
        return  # pickle can be converted: what the checkpoint is comes first
    for program, patterns in other_models.FORMATS:
        if files := [name for name in found if any(fnmatch(Path(name).name, pattern) for pattern in patterns)]:
            raise ModelError(
                f"{root}: {program} only ({some_names(files, _SHOWN)}): the *.safetensors of the model are needed",
                hint="name the repository that has them: the README of a converted model names the original",
            )


def refuse_other_kinds(root: Path, model: Path) -> None:
    """Refuse a model of another kind: by the classes of its modules or, without config.json, by its other files."""
    for dotted in module_types(root):
        if what := other_models.describe_module(dotted):
            name = dotted.rpartition(".")[2] if dotted.startswith("sentence_transformers.") else dotted
            raise ModelError(f"{root / 'modules.json'}: the module `{name}` is not known: {what}", hint=_WANTED)
    if (model / "config.json").is_file():
        return
    for name, what in other_models.PROGRAMS:
        if (root / name).is_file():
            raise ModelError(f"{root}: no config.json: {what} (`{name}`)", hint=_WANTED)
    below = sorted(name for name in _walk_entries(model) if Path(name).name == "config.json")
    hint = "a checkpoint folder holds config.json, tokenizer.json and *.safetensors"
    if below:
        hint = f"there is one in `{model / Path(below[0]).parent}`: name that folder"
    raise ModelError(f"{model}: no config.json", hint=hint)


def refuse_architecture(root: Path, path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a model whose class is known neither here nor to transformers. path: the model's own folder."""
    names = config.get("architectures")
    place = path / "config.json"
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        what = other_models.describe_config(config)
        raise ModelError(
            f"{place}: `architectures` must name one class: {names!r}{f': {what}' if what else ''}",
            hint=_WANTED
            if what
            else "the class that the weights were saved from belongs there, for example "
            '`"architectures": ["BertForSequenceClassification"]`',
        )
    if is_known(names[0]):
        return
    what = other_models.describe_architecture(names[0])
    types = [dotted.rpartition(".")[2] for dotted in module_types(root)]
    if types and types[-1] in ("Pooling", "Normalize"):
        what = f"{other_models.VECTORS} ({', '.join(types)})"
    code = "its code is in the checkpoint, and code of a checkpoint is never run" if _has_code(path, config) else None
    told = "; ".join(one for one in (what, code) if one)
    raise ModelError(
        f"{place}: architecture `{names[0]}` is not a reranker that is known{told and f': {told}'}",
        hint=_WANTED
        if what
        else f"known are {', '.join(sorted(FAMILIES))} and the sequence classifiers of transformers",
    )


def refuse_other_readings(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a config.json that transformers takes for another model than `architectures` names."""
    place, (name,) = path / "config.json", config["architectures"]
    own = _TYPES.get(re.sub(r"(For|Model).*", "", name), set())
    model_type = config.get("model_type")
    if own and isinstance(model_type, str) and model_type in set().union(*_TYPES.values()) - own:
        raise ModelError(
            f"{place}: `model_type` is {model_type}, and `architectures` names {name}: programs differ in which of the "
            "two they take",
            hint="make both say what the weights are of",
        )
    if FAMILIES.get(name, Family()).forward in (*BERT_LIKE, "modernbert") and config.get("is_causal"):
        raise ModelError(
            f"{place}: `is_causal` is {config['is_causal']!r}: in {name} each token sees all others, and transformers "
            "hides them in some batches"
        )


def refuse_modules(root: Path, config: Mapping[str, Any], declared: Declaration) -> None:
    """Refuse modules that do not fit the model: those of an unknown embedder, or of another kind of score."""
    names = config.get("architectures")
    architecture = names[0] if isinstance(names, list) and names else None
    family = FAMILIES.get(architecture) if isinstance(architecture, str) else None
    if family is not None and family.headless and not declared.modules:
        raise ModelError(
            f"{root / 'config.json'}: an embedding model: {architecture} has no head, and no modules.json declares one",
            hint=_WANTED,
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
    """Refuse a language model whose code says how it is scored."""
    names = config.get("architectures")
    language = isinstance(names, list) and any(str(name).endswith("ForCausalLM") for name in names)
    if declared.listed or not language or not _has_code(root, config):
        return
    code = sorted(file.name for file in root.glob("*.py"))
    told = ", ".join(f"`{name}`" for name in code) or "`auto_map` in config.json"
    raise ModelError(
        f"{root}: {told} says how this language model is scored, and code of a checkpoint is never run",
        hint="a folder with modules.json, or one that was saved without code, can be read",
    )


def refuse_pickle(path: Path) -> NoReturn:
    """Refuse a folder without safetensors, and name its pickled weights. path: the model's own folder."""
    names = [
        name for name in _walk_entries(path, depth=1) if any(fnmatch(name, pattern) for pattern in other_models.PICKLES)
    ]
    if names:
        raise ModelError(
            f"{path}: no safetensors weights, and pickle is not read: {some_names(names, _SHOWN)}",
            hint="convert them with safetensors: `AutoModelForSequenceClassification.from_pretrained(folder)"
            ".save_pretrained(folder, safe_serialization=True)`",
        )
    raise ModelError(f"{path}: no *.safetensors weights", hint="all files of the checkpoint's repository are needed")


def _has_code(path: Path, config: Mapping[str, Any]) -> bool:
    return bool(config.get("auto_map")) or any(path.glob("*.py"))


def _walk_entries(root: Path, depth: int = _DEPTH) -> Iterator[str]:
    """Paths below `root`, sorted by name in each folder; up to `depth` levels and `_MOST_ENTRIES` entries."""
    found = 0
    for folder, folders, files in os.walk(root):
        inside = Path(folder).relative_to(root)
        folders[:] = sorted(folders) if len(inside.parts) < depth - 1 else []
        for name in sorted([*files, *(one for one in folders if one.endswith(".mlpackage"))]):
            yield str(inside / name)
            found += 1
            if found == _MOST_ENTRIES:
                return


def some_names(names: Sequence[str], most: int = 5) -> str:
    """The first names in backticks, and how many more there are."""
    shown = ", ".join(f"`{name}`" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
