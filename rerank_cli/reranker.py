"""Rerank from Python: the rows of a program instead of those of a file.

    reranker = Reranker("BAAI/bge-reranker-base")
    reranker.rerank("a query", ["a passage", "another"])    # dicts in rank order
    reranker.score([("a query", "a passage")])              # logits in the given order
    reranker.rerank(frame, top_n=5)                         # takes a frame, returns a frame

The stages are those of `rerank-file`: `job/prepare.py` finds the model and plans, `engine.open_engine` loads it, and
`job/scoring_loop.py` scores. So ranks and logits are those of the command line, bit for bit if the same rows come in
the same order. `formats/in_memory.py` turns rows of a program into those of a file, and back.

Options have the names of the command line, with `_` for `-`. Unlike there, environment variables are ignored, and the
environment of the process is not changed; nothing is downloaded unless `online` is given.

Over 400 lines: it is the whole Python interface of the program.
"""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import closing, contextmanager, nullcontext
from dataclasses import fields, replace
from difflib import get_close_matches
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, Unpack, cast, get_args, get_type_hints, overload

from rerank_cli.encoding.choices import ImageLimits, Pool, SpecialTokens, Truncation
from rerank_cli.engine import open_engine
from rerank_cli.engine.embedding import EmbeddingEngine
from rerank_cli.errors import InputError, RerankError, UsageError
from rerank_cli.formats.in_memory import RankedRows, answer_rows, given_rows, in_groups, refuse_lone_surrogates
from rerank_cli.formats.position import Position
from rerank_cli.formats.shapes import FieldNames, Selection
from rerank_cli.job.options import STDOUT, JobOptions, Names, refuse_idle, refuse_store, refuse_unusable
from rerank_cli.job.prepare import find_known, prepare_model, refuse_sigmoids, refuse_unfit
from rerank_cli.job.progress import Progress as RunProgress
from rerank_cli.job.ranking import select
from rerank_cli.job.score_store.run_store import RunStore
from rerank_cli.job.scoring_loop import score_windows
from rerank_cli.job.windows import Windows
from rerank_cli.planning.choices import ProfileRequest, least_overlap, parse_device
from rerank_cli.planning.run_plan import Plan
from rerank_cli.records import RankedList, RowError, Timing

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    import pyarrow as pa

    from rerank_cli.engine import Engine

OnError = Literal["raise", "keep"]


class ModelOptions(TypedDict, total=False):
    """How a model is found, and what it reads of a pair; `rerank-cli rerank-file --help` explains each option.

    template: a text with `{query}` and `{passage}`, a `Path` to a file with one, or `"none"`.
    max_unknown: a share, from 0 to 1.
    """

    revision: str | None
    online: bool
    device: str
    precision: str
    profile: str
    max_tokens: int | None
    token_budget: int | None
    max_input_tiles: int | None
    max_image_pixels: int
    special_tokens: SpecialTokens
    instruction: str | None
    taken_as: str | None
    label: int | None
    max_unknown: float | None
    template: str | Path | None
    truncate: Truncation
    chunk_overlap: int
    pool: Pool
    store: str | Path | None
    store_limit: int


class RowOptions(TypedDict, total=False):
    """Where the texts are, and what is returned.

    on_error: with `raise` (the default), a row that cannot be scored raises `InputError` with its number, from 1; with
    `keep`, it is returned without rank and score, and with the reason in `rerank_error`. image_root: by default the
    current folder. progress: show a progress bar.
    """

    query_field: str | None
    passages_field: str | None
    text_field: str | None
    image_field: str | None
    image_root: str | Path | None
    id_field: str | None
    group_by: str | None
    top_n: int | None
    threshold: float | None
    prob: bool
    on_error: OnError
    progress: bool


class Options(ModelOptions, RowOptions, total=False):
    """`ModelOptions` and `RowOptions`."""


_LEAST = {
    "max_tokens": 8, "token_budget": 1, "max_input_tiles": 1, "max_image_pixels": 1, "chunk_overlap": 0, "top_n": 1
}  # fmt: skip
_SHARES = ("max_unknown",)
_TYPES: dict[Any, tuple[tuple[type, ...], str]] = {
    int: ((Integral,), "a whole number"), float: ((Real,), "a number"), str: ((str,), "a text"),
    Path: ((Path,), "a Path"), bool: ((bool,), "True or False"), type(None): ((type(None),), "None"),
}  # fmt: skip
"""For each type of an option: what it takes, numpy's numbers too, and its name in a message."""
_SAME = {
    "batch_size": "token_budget", "dtype": "precision", "torch_dtype": "precision", "use_fp16": "precision",
    "model_name": "model", "model_id": "model", "model_name_or_path": "model", "max_length": "max_tokens",
    "documents": "passages", "docs": "passages", "candidates": "passages", "texts": "passages",
    "top_k": "top_n", "k": "top_n", "show_progress_bar": "progress", "normalize": "prob",
    "query_column": "query_field", "text_column": "text_field", "passage_field": "text_field",
}  # fmt: skip
"""The names that other libraries use, and ours."""
_NO_OPTION_NEEDED = {
    "return_documents": "passages are always returned with their texts",
    "trust_remote_code": "code in a checkpoint is never run",
}
_OF_ENCODER = (
    "special_tokens", "instruction", "taken_as", "label", "max_unknown", "truncate", "chunk_overlap", "pool",
    "revision", "online",
)  # fmt: skip
_OF_REQUEST = ("precision", "max_tokens", "token_budget")
_OF_SELECTION = ("top_n", "threshold", "prob")


class Reranker:
    """A model that is loaded once, and reranks as often as you like.

    model: a checkpoint folder, or a Hugging Face id in the local cache; None is the built-in model.

    Raises the errors of `rerank_cli.errors`. If the machine cannot do what is asked, it does the nearest that it can,
    with a `UserWarning`. Calls from several threads wait for each other; a forked process is refused. On a CPU, the
    number of torch's threads is set to that of the plan for the whole process, because logits may depend on it.
    """

    def __init__(self, model: str | Path | None = None, **options: Unpack[ModelOptions]) -> None:
        given = cast(ModelOptions, _check_options(options, ModelOptions))
        self._engine: Engine | None = None
        with _in_python_words():
            self._load(model, given)

    def _load(self, model: str | Path | None, options: ModelOptions) -> None:
        global _threads_of
        _refuse_fork(_threads_of)
        self._process = os.getpid()
        self._options = _job_options(model, options)
        refuse_idle(self._options, {name: f"--{name.replace('_', '-')}" for name in options})
        refuse_store(self._options)
        prepared = prepare_model(self._options, find_known(self._options))
        self.plan: Plan = prepared.plan
        """How the model runs on this machine, with the reasons."""
        for warning in prepared.plan.warnings:
            warnings.warn(warning, stacklevel=3)
        self._prepared = prepared
        self._lock = threading.Lock()
        if prepared.plan.device != "cpu" or prepared.plan.threads > 1:
            _threads_of = self._process
        self._engine = open_engine(prepared.plan, prepared.checkpoint)
        # No table in memory without `store`: most repeated pairs of a call are in one window, which scores them once.
        self._store = self._options.store is not None and RunStore(
            self._options, prepared, prepared.plan, self._engine, on_note=_warn
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        plan, closed = self.plan, ", closed" if self._engine is None else ""
        name = self._options.model or "built-in model"
        return (
            f"<Reranker {name}: {plan.precision} on {plan.device}, at most {plan.max_tokens:,} tokens a pair{closed}>"
        )

    def __reduce__(self) -> str:
        raise TypeError("a Reranker cannot be pickled: load one in each process")

    def close(self) -> None:
        """Free the memory of the model; `rerank` cannot be called afterwards."""
        with self._lock:
            if self._engine is not None:
                self._engine.close()
                self._engine = None
                if self._store:
                    self._store.close()

    @overload
    def rerank(self, data: str, passages: Iterable[Any], **options: Unpack[RowOptions]) -> list[dict[str, Any]]: ...

    @overload
    def rerank(self, data: pd.DataFrame, **options: Unpack[RowOptions]) -> pd.DataFrame: ...

    @overload
    def rerank(
        self, data: Iterable[Mapping[str, Any]] | Iterable[tuple[str, Sequence[Any]]], **options: Unpack[RowOptions]
    ) -> list[dict[str, Any]]: ...

    @overload
    def rerank(self, data: pa.Table, **options: Unpack[RowOptions]) -> pa.Table: ...

    def rerank(self, data: Any, passages: Iterable[Any] | None = None, **options: Unpack[RowOptions]) -> Any:
        """The passages of a query, or the rows of `data`, in rank order and in the form of the input.

        `rerank(query, passages)` returns a list of dicts, one for each passage: its `text` (or its own fields), `rank`,
        `logit` and `index`.

        If each row is a pair (a column of queries, a column of passages): the rows of each query together, queries in
        order of first appearance, with the columns `rank`, `logit` and `index` (the place among the rows of its query,
        from 0). If each row is a list (a column of lists of texts or dicts, or a tuple `(query, passages)`): the same
        rows, with sorted passages, each a dict with `rank`, `logit` and `index`. Other columns stay as they are.

        An embedding model gives a `cosine` instead of the `logit`.
        """
        asked = cast(RowOptions, _check_options(options, RowOptions))
        with _in_python_words():
            if isinstance(data, str):
                if passages is None:
                    raise UsageError("a query without passages", hint='`rerank("query", ["a passage", "another"])`')
                if isinstance(passages, (str, bytes)):
                    raise UsageError("passages: is a text, not a list of texts", hint="`rerank(query, [passage])`")
                found = self._rerank([(data, _list_passages(passages))], asked)
                return found[0]["passages"] if found else []
            if passages is not None:
                raise UsageError("passages: only go with a query that is a text; rows have their own")
            return self._rerank(data, asked)

    def rank(self, query: str, passages: Iterable[Any], **options: Unpack[RowOptions]) -> list[dict[str, Any]]:
        """`rerank` of one query, by the name that sentence-transformers uses."""
        return self.rerank(query, passages, **options)

    @overload
    def score(self, pairs: tuple[str, str], *, progress: bool = False) -> float: ...

    @overload
    def score(self, pairs: Iterable[Sequence[Any]], *, progress: bool = False) -> npt.NDArray[np.float32]: ...

    def score(self, pairs: Any, *others: object, progress: bool = False) -> Any:
        """The logits of (query, passage) pairs, in their order, as float32; a number for a single pair."""
        with _in_python_words():
            if others:
                raise UsageError(
                    "score: takes pairs, not a query and its passages",
                    hint='`score(("query", "passage"))` scores a pair, `rerank("query", ["a passage", ...])` a list',
                )
            if isinstance(pairs, tuple) and len(pairs) == 2 and isinstance(pairs[0], str):
                return float(self._score([pairs], progress=progress)[0])
            if _is_frame(pairs):  # `list` of it would give its columns, or its rows as dicts
                raise UsageError(
                    f"{type(pairs).__name__}: is not a list of pairs",
                    hint='`rerank(frame)` scores its rows; `score(list(zip(frame["query"], frame["text"])))` pairs',
                )
            given = list(pairs)
            for number, pair in enumerate(given, 1):
                if isinstance(pair, (str, bytes, Mapping, Set)) or not hasattr(pair, "__len__") or len(pair) != 2:
                    raise UsageError(
                        f"pair {number}: is not a query and a passage", hint='`score([("query", "passage"), ...])`'
                    )
            return self._score(given, progress=progress)

    def _score(self, pairs: Sequence[Sequence[Any]], *, progress: bool) -> npt.NDArray[np.float32]:
        import numpy as np

        found = self._rerank([(query, [passage]) for query, passage in pairs], {"progress": progress})
        return np.array([row["passages"][0][self._prepared.score] for row in found], dtype=np.float32)

    def _rerank(self, data: Any, options: RowOptions) -> Any:
        known = {field.name for field in fields(FieldNames)}
        named = {name.removesuffix("_field"): value for name, value in options.items()}
        names = FieldNames(
            **{name: None if value is None else str(value) for name, value in named.items() if name in known}
        )
        job = replace(self._options, fields=names, selection=Selection(**_pick_options(options, _OF_SELECTION)))
        refuse_unusable(job)
        refuse_unfit(job, self._prepared.checkpoint, self._prepared.family)
        selection = replace(job.selection, score=self._prepared.score)
        given = given_rows(data, job.fields)
        refuse_sigmoids(given.shape, self._prepared)
        keep = options.get("on_error", "raise") == "keep"
        _refuse_fork(self._process if self._store else _threads_of)
        errors: dict[int, RowError] = {}
        lists: list[RankedList] = []
        rows = in_groups(given, given.rows())
        with self._lock:
            if self._engine is None:
                raise UsageError("this Reranker has been closed")
            position = Position((), limit=len(rows))
            windows = Windows(
                given.shape.group(position.count(refuse_lone_surrogates(rows))),
                max_pairs=self.plan.window_pairs, position=lambda: position.share,
            )  # fmt: skip
            shown = _Bar() if options.get("progress") else None
            timing = Timing()
            scoring = score_windows(
                windows, self._prepared.encoder, self._engine, pool=self._options.pool, timing=timing,
                known=self._store.known(timing) if self._store else None,
                image_processes=self.plan.image_processes, on_submit=shown.progress.submit if shown else None,
                on_batch=shown.add_batch if shown else None,
            )  # fmt: skip
            with shown or nullcontext(), closing(scoring):
                for window in scoring:
                    lists += [select(item, selection) for item in window.ranked]
                    for error in window.errors:
                        if not keep:
                            raise InputError(
                                f"row {error.row}: {error.message}",
                                hint='`on_error="keep"` returns such rows without a score',
                            )
                        errors[error.row] = error
            if isinstance(self._engine, EmbeddingEngine):
                self._engine.take_fresh()  # they are kept for a journal, which is not there
        # A list with a bad passage is returned unranked, with the reason: a frame has no errors file for the passage.
        whole = [one for one in lists if len(one.source.rows) > 1 or one.source.rows[0].number not in errors]
        return answer_rows(given, rows, RankedRows(whole, errors), selection, keep=keep)


@overload
def rerank(data: pd.DataFrame, model: str | Path | None = None, **options: Unpack[Options]) -> pd.DataFrame: ...


@overload
def rerank(
    data: Iterable[Mapping[str, Any]] | Iterable[tuple[str, Sequence[Any]]],
    model: str | Path | None = None,
    **options: Unpack[Options],
) -> list[dict[str, Any]]: ...


@overload
def rerank(data: pa.Table, model: str | Path | None = None, **options: Unpack[Options]) -> pa.Table: ...


def rerank(data: Any, model: str | Path | None = None, **options: Unpack[Options]) -> Any:
    """`Reranker.rerank` with a model that is loaded for this call alone. Takes the options of both."""
    _check_options(options, Options)
    of_model = {name: value for name, value in options.items() if name in ModelOptions.__annotations__}
    of_rows = {name: value for name, value in options.items() if name in RowOptions.__annotations__}
    with Reranker(model, **cast(ModelOptions, of_model)) as reranker:
        return reranker.rerank(data, **cast(RowOptions, of_rows))


_threads_of: int | None = None
"""The process that has loaded a model which runs on several threads, or on a GPU."""


def _refuse_fork(process: int | None) -> None:
    """`UsageError` if this process was forked from `process`: torch would wait for threads that only that one has."""
    if process not in (None, os.getpid()):
        raise UsageError(
            "Reranker: does not work in a process that was forked from the one that has loaded it",
            hint='`multiprocessing.get_context("spawn")` starts processes in which it works; load it in each',
        )


def _warn(text: str) -> None:
    warnings.warn(text.partition(": ")[2] or text, stacklevel=4)


_OPTION = re.compile(r"--([a-z][a-z-]+)(?:[ =]([^\s`,;]*[^\s`,;:]))?")


@contextmanager
def _in_python_words() -> Iterator[None]:
    """Inside, an error names options as in Python (`top_n=3`, not `--top-n 3`), and its hint becomes a note."""
    try:
        yield
    except RerankError as error:
        error.message = _OPTION.sub(_as_argument, error.message)
        error.hint = error.hint and _OPTION.sub(_as_argument, error.hint)
        error.args = (error.message,)
        if error.hint:
            error.add_note(f"hint: {error.hint}")  # a traceback shows notes
        raise


def _as_argument(found: re.Match[str]) -> str:
    name, value = found[1].replace("-", "_"), found[2]
    name = "taken_as" if name == "as" else name
    if name not in Options.__annotations__:
        return found[0]
    if value is None:
        return f"{name}=True" if name in ("online", "prob") else name
    return f"{name}={value}" if value.isdecimal() or value == "N" else f'{name}="{value}"'


def _list_passages(passages: Iterable[Any]) -> list[Any]:
    """The passages in a list, an array, a column, or a frame with a passage in each row."""
    if isinstance(passages, Mapping):
        raise UsageError("passages: is a dict, not a list", hint="`rerank(query, list(passages.values()))`")
    for method in ("to_pylist", "to_list", "tolist", "to_dicts"):  # Arrow, pandas and polars, numpy; polars' frames
        if listed := getattr(passages, method, None):
            return list(listed())
    if _is_frame(passages):
        to_dict = getattr(passages, "to_dict", None)  # pandas
        if to_dict is None:
            raise UsageError(f"passages: is a {type(passages).__name__}, not a list", hint="give one of its columns")
        return list(to_dict("records"))
    return list(passages)


def _is_frame(data: object) -> bool:
    """Whether `data` has columns: a frame of pandas, polars, Arrow, datasets or DuckDB."""
    return any(hasattr(data, name) for name in ("columns", "column_names"))


class _Bar:
    """A progress bar, for a terminal or a notebook."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.progress = RunProgress()
        self._bar = Progress(
            TextColumn("{task.fields[pairs]:,} pairs"),
            BarColumn(),
            TextColumn("{task.percentage:.0f} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        self._task = self._bar.add_task("", total=1.0, pairs=0)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def add_batch(self, pairs: int, tokens: int) -> None:
        """See `score_windows`."""
        self.progress.add_batch(pairs, tokens)
        self._bar.update(self._task, completed=self.progress.share or 0.0, pairs=self.progress.pairs)


def _check_options(options: Mapping[str, Any], known: type) -> dict[str, Any]:
    """The options, refused as a type checker would refuse them, for programs that are not checked."""
    types = _types_of(known)
    for name, value in options.items():
        if name not in types:
            raise TypeError(f"unknown option `{name}`{_advice_on(name, list(types))}")
        kinds = get_args(types[name]) or (types[name],)
        if all(isinstance(kind, str) for kind in kinds):
            if value not in kinds:
                raise UsageError(f"{name} {value!r}: not known", hint="known are " + ", ".join(kinds))
            continue
        if not any(_is_of(value, kind) for kind in kinds):
            raise TypeError(f"{name} {value!r}: must be {' or '.join(_TYPES[kind][1] for kind in kinds)}")
        if name in _LEAST and value is not None and value < _LEAST[name]:
            raise UsageError(f"{name} {value}: must be at least {_LEAST[name]}")
        if name in _SHARES and value is not None and not 0 <= value <= 1:
            raise UsageError(f"{name} {value}: must be a share, from 0 to 1", hint=f"`{name}=0.05` is 5 %")
    return {name: value.item() if hasattr(value, "item") else value for name, value in options.items()}  # numpy's


_types_of = cache(get_type_hints)


def _is_of(value: object, kind: type) -> bool:
    is_flag = type(value).__name__ in ("bool", "bool_")  # numpy has them too
    return is_flag if kind is bool else isinstance(value, _TYPES[kind][0]) and not is_flag


def _advice_on(name: str, names: Sequence[str]) -> str:
    """What to do about an option that a call does not have."""
    if name in _NO_OPTION_NEEDED:
        return f"; {_NO_OPTION_NEEDED[name]}"
    meant = _SAME.get(name, name)
    if meant in ("model", "passages", *names):
        return f"; did you mean `{meant}`?"
    for call, known in (("Reranker(...)", ModelOptions), ("rerank(...)", RowOptions)):
        if meant in known.__annotations__:
            return f"; `{meant}` is an option of `{call}`"
    near = get_close_matches(name, names, n=1)
    return f"; did you mean `{near[0]}`?" if near else f"; known are {', '.join(names)}"


def _job_options(model: str | Path | None, options: ModelOptions) -> JobOptions:
    """The same options as of a command, without rows."""
    device, gpus = parse_device(options.get("device", "auto"), "device")
    profile = options.get("profile", "auto")
    file = profile if profile.endswith(".toml") else None
    request = ProfileRequest(
        device=device, gpus=gpus, profile="auto" if file else profile, engine_count=1,
        origins={"engine_count": "Reranker"}, **_pick_options(options, _OF_REQUEST),
    )  # fmt: skip
    if least_overlap(request.precision):
        raise UsageError(
            f"precision {request.precision}: is chosen by the first lists of a file, and a Reranker has none yet",
            hint='`rerank-cli rerank-file --precision auto:0.99` chooses one; give it as `precision="bf16"`',
        )
    template = options.get("template")
    if isinstance(template, Path):
        template = template.read_text(encoding="utf-8").removesuffix("\n")
    store = _pick_options(options, ("store", "store_limit"))
    if (folder := store.get("store")) is not None:
        store["store"] = str(folder)
    images = ImageLimits(options.get("max_input_tiles"), options.get("max_image_pixels", ImageLimits().max_pixels))
    return JobOptions(
        inputs=(), names=Names(STDOUT), model=None if model is None else str(model), request=request,
        profiles_file=file, images=images, template=template, **store, **_pick_options(options, _OF_ENCODER),
    )  # fmt: skip


def _pick_options(options: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: options[name] for name in names if name in options}
