"""Reads modules.json, and the config.json of each module behind the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, cast, get_args

from rerank_cli.checkpoint.declared.values import (
    DeclaredLayerNorm,
    Dense,
    LogitScore,
    Module,
    Normalize,
    Pooling,
    PoolingMode,
)
from rerank_cli.checkpoint.json_file import read_json_file, read_json_list
from rerank_cli.errors import ModelError

_VECTOR, _SCORES = "sentence_embedding", "scores"
_POOLING_MODES: tuple[PoolingMode, ...] = get_args(PoolingMode)
# In the order in which several of them are joined.
_OLD_POOLING_KEYS: dict[str, PoolingMode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Modules of torch that take no arguments and act on each number by itself.
_ACTIVATIONS = {
    "CELU", "ELU", "GELU", "Hardsigmoid", "Hardswish", "Hardtanh", "Identity", "LeakyReLU", "LogSigmoid", "Mish",
    "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softsign", "Tanh", "Tanhshrink",
}  # fmt: skip


class Config:
    """The config.json of a module (or another JSON object), whose keys are taken one by one.

    place: the file, for messages. `finish` refuses keys that were not taken.
    """

    def __init__(self, place: str, values: Mapping[str, Any]) -> None:
        self.place = place
        self._left = dict(values)

    def take(self, key: str, default: Any = None) -> Any:
        """The value of `key`."""
        return self._left.pop(key, default)

    def whole(self, key: str, *names: str, least: int = 0) -> int:
        """A whole number under `key` or one of its other `names`."""
        found = [self._left.pop(name) for name in (key, *names) if name in self._left]
        if not found or type(found[0]) is not int or not least <= found[0] < 2**63:
            self.refuse(key, f"must be a whole number from {least}: {found[0] if found else 'missing'}")
        return cast("int", found[0])

    def flag(self, key: str, *, default: bool) -> bool:
        """A boolean under `key`."""
        value = self._left.pop(key, default)
        if type(value) is not bool:
            self.refuse(key, f"must be true or false: {value!r}")
        return cast("bool", value)

    def only(self, key: str, *known: Any, default: Any) -> Any:
        """The value of `key`, which must be one of `known`."""
        value = self._left.pop(key, default)
        # Types are compared too, because `1 == True`.
        if not any(type(value) is type(one) and value == one for one in known):
            self.refuse(key, f"is {value!r}; known is {' or '.join(repr(one) for one in known)}")
        return value

    def refuse(self, key: str, what: str) -> None:
        """`ModelError` naming the key."""
        raise ModelError(f"{self.place}: `{key}` {what}", hint=_HINT)

    def finish(self) -> None:
        """Refuse keys that were not taken: they may change the score."""
        if self._left:
            names = ", ".join(f"`{name}`" for name in sorted(self._left))
            raise ModelError(f"{self.place}: {names} {'are' if len(self._left) > 1 else 'is'} not known", hint=_HINT)


_HINT = "it changes the score, and rerank-cli does not compute it: use sentence-transformers for this model"


def find_model_folder(root: Path) -> str:
    """The folder of config.json, tokenizer and weights, below `root`: that of the first module, which is the model."""
    place = root / "modules.json"
    entries = read_json_list(place) if place.is_file() else []
    return _entry(place, entries[0])["path"] if entries else ""


def module_types(root: Path) -> list[str]:
    """The classes that modules.json names, with their packages; empty without such a file."""
    place = root / "modules.json"
    return [_entry(place, entry)["type"] for entry in read_json_list(place)] if place.is_file() else []


def read_modules(root: Path) -> tuple[str, tuple[Module, ...], tuple[str, ...]]:
    """The model's own folder, the modules behind the model, and the files that were read; paths below `root`."""
    place = root / "modules.json"
    entries = [_entry(place, entry) for entry in read_json_list(place)]
    if not entries:
        raise ModelError(f"{place}: no module")
    names = [entry["name"] for entry in entries]
    if len(set(names)) < len(names):
        raise ModelError(f"{place}: two modules have the same `name`")
    classes = [_class(place, entry["type"]) for entry in entries]
    if classes[0] != "Transformer":
        raise ModelError(f"{place}: the first module is `{classes[0]}`, and only `Transformer` is known there")
    files = ["modules.json"]
    modules: list[Module] = []
    for name, entry in zip(classes[1:], entries[1:], strict=True):
        if name not in _READERS:
            raise ModelError(f"{place}: the module `{name}` is not known", hint=_HINT)
        config = root / entry["path"] / "config.json"
        if config.is_file():
            files.append(str(PurePosixPath(entry["path"], "config.json")))
        elif name != "Normalize":
            raise ModelError(f"{config}: missing, and modules.json names a {name} there")
        values = Config(str(config), read_json_file(config) if config.is_file() else {})
        modules.append(_READERS[name](values, entry["path"]))
        values.finish()
    _check_chain(place, modules)
    return entries[0]["path"], tuple(modules), tuple(files)


def _entry(place: Path, entry: Any) -> dict[str, str]:
    if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
        raise ModelError(f"{place}: a module must be an object with `type`: {entry!r}")
    path = entry.get("path", "")
    if not isinstance(path, str) or PurePosixPath(path).is_absolute() or "\\" in path or ":" in path:
        raise ModelError(f"{place}: `path` must be a folder of the checkpoint: {path!r}")
    if ".." in PurePosixPath(path).parts:
        raise ModelError(f"{place}: `path` leaves the checkpoint: {path!r}")
    normal = "" if path in ("", ".", "./") else str(PurePosixPath(path))
    return {"name": str(entry.get("name", entry.get("idx"))), "path": normal, "type": entry["type"]}


def _class(place: Path, dotted: str) -> str:
    """The name of the class without its package, which differs between versions."""
    if not dotted.startswith("sentence_transformers."):
        raise ModelError(
            f"{place}: the module `{dotted}` is code of the checkpoint, which is never run",
            hint="code of a checkpoint says how it is scored: use the library that it was made for",
        )
    return dotted.rpartition(".")[2]


def _pooling(config: Config, folder: str) -> Module:
    for key in ("embedding_dimension", "word_embedding_dimension"):
        config.take(key)
    old = {mode: config.take(key) for key, mode in _OLD_POOLING_KEYS.items()}
    modes = config.take("pooling_mode") or [mode for mode, value in old.items() if value] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or any(mode not in _POOLING_MODES for mode in modes):
        config.refuse("pooling_mode", f"is {modes!r}; known are {', '.join(_POOLING_MODES)}")
    return Pooling(tuple(modes), skips_prompt=not config.flag("include_prompt", default=True))


def _dense(config: Config, folder: str) -> Module:
    activation = config.take("activation_function", "torch.nn.modules.activation.Tanh")
    name = activation.rpartition(".")[2] if isinstance(activation, str) else None
    if not name or name not in _ACTIVATIONS or not str(activation).startswith("torch.nn."):
        config.refuse("activation_function", f"is {activation!r}; known are {', '.join(sorted(_ACTIVATIONS))} of torch")
    reads = config.only("module_input_name", _VECTOR, default=_VECTOR)
    writes = config.take("module_output_name")
    writes = reads if writes is None else writes
    if writes not in (_VECTOR, _SCORES):
        config.refuse("module_output_name", f"is {writes!r}; known is {_VECTOR!r} or {_SCORES!r}")
    dense = Dense(
        folder=folder,
        inputs=config.whole("in_features", least=1),
        outputs=config.whole("out_features", least=1),
        bias=config.flag("bias", default=True),
        activation=str(name),
        residual=config.flag("use_residual", default=False),
        scores=writes == _SCORES,
    )
    if dense.scores and dense.outputs != 1:
        config.refuse("out_features", f"is {dense.outputs}: a reranker gives one score")
    return dense


def _normalize(config: Config, folder: str) -> Module:
    config.only("module_input_name", _VECTOR, default=_VECTOR)
    config.only("module_output_name", _VECTOR, None, default=None)
    return Normalize()


def _logit_score(config: Config, folder: str) -> Module:
    config.only("module_input_name", "causal_logits", default="causal_logits")
    true_id, false_id = config.whole("true_token_id"), config.take("false_token_id")
    if false_id is not None and (type(false_id) is not int or not 0 <= false_id < 2**63):
        config.refuse("false_token_id", f"must be a whole number from 0, or null: {false_id!r}")
    return LogitScore(true_id, false_id)


_READERS: dict[str, Callable[[Config, str], Module]] = {
    "Pooling": _pooling,
    "Dense": _dense,
    "LayerNorm": lambda config, folder: DeclaredLayerNorm(folder, size=config.whole("dimension", least=1)),
    "Normalize": _normalize,
    "LogitScore": _logit_score,
}


def _check_chain(place: Path, modules: Sequence[Module]) -> None:
    """Refuse modules that give neither a score nor a vector in this order."""
    kinds = [type(module).__name__ for module in modules]
    scoring = [number for number, module in enumerate(modules) if isinstance(module, Dense) and module.scores]
    known = (
        not modules
        or kinds == ["LogitScore"]
        or (
            kinds[0] == "Pooling"
            and not {"Pooling", "LogitScore"} & set(kinds[1:])
            and scoring in ([], [len(kinds) - 1])
        )
    )
    if not known and kinds[0] == "Dense" and not scoring:
        raise ModelError(
            f"{place}: modules in this order give a vector for every token (late interaction, as ColBERT), and no "
            f"score of a pair: {', '.join(['Transformer', *kinds])}",
            hint="a reranker is needed, for example a ...ForSequenceClassification",
        )
    if not known:
        chain = ", ".join(["Transformer", *kinds])
        raise ModelError(
            f"{place}: modules in this order give no score that is known: {chain}",
            hint="known are Transformer alone, before a LogitScore, or before Pooling and a head whose last Dense "
            "writes `scores`",
        )
