"""Rerank from Python: the rows of a program in place of those of a file.

    with Reranker("BAAI/bge-reranker-base") as reranker:
        best = reranker.rerank(frame, top_n=5)

`rerank-file` with other ends: `job/prepare.py` finds the model and plans, `engine.open_engine` loads it, and
`job/scoring_loop.py` scores. So ranks and logits are those of the command line, bit for bit where the same rows come in
the same order. `formats/in_memory.py` turns rows of a program into those of a file and back.

Options have the names of the command line's with `_` for `-`. Unlike there no environment variable is heard, and the
environment of the process stays as it is; nothing is downloaded unless `online` is given.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, Unpack, cast, get_args, overload

from rerank_cli.encoding.choices import ImageLimits, Pool, SpecialTokens, Truncation
from rerank_cli.engine import open_engine
from rerank_cli.engine.embedding import EmbeddingEngine
from rerank_cli.errors import InputError, UsageError
from rerank_cli.formats.in_memory import Ranked, answer, given_rows, in_groups, read
from rerank_cli.formats.shapes import FieldNames, Selection
from rerank_cli.job.options import STDOUT, JobOptions, Names, refuse_unusable
from rerank_cli.job.prepare import find_known, prepare_model, refuse_sigmoids, refuse_unfit
from rerank_cli.job.ranking import select
from rerank_cli.job.scoring_loop import score_windows
from rerank_cli.job.windows import Windows
from rerank_cli.planning.choices import ProfileRequest, parse_device
from rerank_cli.planning.run_plan import Plan
from rerank_cli.records import RankedList, RowError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    import pyarrow as pa

    from rerank_cli.engine import Engine

OnError = Literal["raise", "keep"]


class ModelOptions(TypedDict, total=False):
    """How a model is found and what it reads of a pair; `rerank-cli rerank-file --help` has the meanings.

    template: text with `{query}` and `{passage}`, a `Path` to a file with it, or `"none"`.
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
    label: int | None
    max_unknown: float | None
    template: str | Path | None
    truncate: Truncation
    chunk_overlap: int
    pool: Pool


class RowOptions(TypedDict, total=False):
    """Where the texts are, and what comes back.

    on_error: `raise` (the default) is an `InputError` for a row that cannot be scored, with its number, from 1; `keep`
    returns it without rank and score, with the reason in `rerank_error`. image_root: by default the current folder.
    """

    query_field: str | None
    passages_field: str | None
    text_field: str | None
    image_field: str | None
    image_root: str | None
    id_field: str | None
    group_by: str | None
    top_n: int | None
    threshold: float | None
    prob: bool
    on_error: OnError


class Options(ModelOptions, RowOptions, total=False):
    """Those of both."""


_LEAST = {
    "max_tokens": 8, "token_budget": 1, "max_input_tiles": 1, "max_image_pixels": 1, "chunk_overlap": 0, "top_n": 1
}  # fmt: skip
_CHOICES = {
    "special_tokens": get_args(SpecialTokens), "truncate": get_args(Truncation), "pool": get_args(Pool),
    "on_error": get_args(OnError),
}  # fmt: skip
_OF_ENCODER = (
    "special_tokens", "instruction", "label", "max_unknown", "truncate", "chunk_overlap", "pool", "revision", "online"
)  # fmt: skip
_OF_REQUEST = ("precision", "max_tokens", "token_budget")
_OF_SELECTION = ("top_n", "threshold", "prob")


class Reranker:
    """A model that is loaded once and reranks as often as it is asked to.

    model: a checkpoint folder or a Hugging Face id in the local cache; None is the built-in model.

    Raises the errors of `rerank_cli.errors`, each with a message for people. What the machine cannot do as asked is a
    warning (`UserWarning`) and is done as near as it can. Calls from several threads wait for each other. On a CPU
    torch's number of threads, which is the process's, becomes that of the plan, as logits may depend on it.
    """

    def __init__(self, model: str | Path | None = None, **options: Unpack[ModelOptions]) -> None:
        _refuse_wrong(options, ModelOptions)
        self._options = _job_options(model, options)
        prepared = prepare_model(self._options, find_known(self._options))
        self.plan: Plan = prepared.plan
        """How the model runs on this machine, with the reasons."""
        for warning in prepared.plan.warnings:
            warnings.warn(warning, stacklevel=2)
        self._prepared = prepared
        self._lock = threading.Lock()
        self._engine: Engine | None = open_engine(prepared.plan, prepared.checkpoint)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back the memory of the model; `rerank` cannot be called any more."""
        with self._lock:
            if self._engine is not None:
                self._engine.close()
                self._engine = None

    @overload
    def rerank(self, data: pd.DataFrame, **options: Unpack[RowOptions]) -> pd.DataFrame: ...

    @overload
    def rerank(
        self, data: Iterable[Mapping[str, Any]] | Iterable[tuple[str, Sequence[Any]]], **options: Unpack[RowOptions]
    ) -> list[dict[str, Any]]: ...

    @overload
    def rerank(self, data: pa.Table, **options: Unpack[RowOptions]) -> pa.Table: ...

    def rerank(self, data: Any, **options: Unpack[RowOptions]) -> Any:
        """The rows of `data` in rank order, in the form they came in.

        A pair a row (a column of queries, a column of passages): the rows of each query together, queries in order of
        first appearance, with the columns `rank`, `logit` and `index` (the place among the rows of its query, from 0).
        A list a row (a column of lists of texts or of dicts): the same rows, their passages sorted, each a dict with
        `rank`, `logit` and `index`. `(query, passages)` is such a row too. Foreign columns stay as they are.

        An embedding model gives a `cosine` in place of the `logit`.
        """
        _refuse_wrong(options, RowOptions)
        job = _with_rows(self._options, options)
        refuse_unusable(job)
        refuse_unfit(job, self._prepared.checkpoint, self._prepared.family)
        selection = replace(job.selection, score=self._prepared.score)
        given = given_rows(data, job.fields)
        refuse_sigmoids(given.shape, self._prepared)
        keep = options.get("on_error", "raise") == "keep"
        errors: dict[int, RowError] = {}
        lists: list[RankedList] = []
        rows = in_groups(given, given.rows())
        with self._lock:
            if self._engine is None:
                raise UsageError("this Reranker has been closed")
            windows = Windows(given.shape.group(read(rows)), max_pairs=self.plan.window_pairs)
            scoring = score_windows(
                windows, self._prepared.encoder, self._engine, pool=self._options.pool,
                image_processes=self.plan.image_processes,
            )  # fmt: skip
            with closing(scoring):
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
        # A list with a bad passage is kept as it was, with the reason: a frame has no errors file for the passage.
        whole = [one for one in lists if len(one.source.rows) > 1 or one.source.rows[0].number not in errors]
        return answer(given, rows, Ranked(whole, errors), selection, keep=keep)


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
    """`Reranker.rerank` with a model that is loaded for this call alone; takes the options of both."""
    _refuse_wrong(options, Options)
    of_model = {name: value for name, value in options.items() if name in ModelOptions.__annotations__}
    of_rows = {name: value for name, value in options.items() if name in RowOptions.__annotations__}
    with Reranker(model, **cast(ModelOptions, of_model)) as reranker:
        return reranker.rerank(data, **cast(RowOptions, of_rows))


def _refuse_wrong(options: Mapping[str, Any], known: type) -> None:
    """Options that the types would have refused, for programs that are not checked."""
    names = list(getattr(known, "__annotations__"))  # noqa: B009 (mypy does not know it of a type)
    for name, value in options.items():
        if name not in names:
            raise TypeError(f"unknown option `{name}`; known are {', '.join(names)}")
        if name in _CHOICES and value not in _CHOICES[name]:
            raise UsageError(f"{name} {value!r}: not known", hint="known are " + ", ".join(_CHOICES[name]))
        if name in _LEAST and value is not None and value < _LEAST[name]:
            raise UsageError(f"{name} {value}: must be at least {_LEAST[name]}")


def _job_options(model: str | Path | None, options: ModelOptions) -> JobOptions:
    """What a command of these options would ask for, without rows."""
    device, gpus = parse_device(options.get("device", "auto"), "device")
    profile = options.get("profile", "auto")
    file = profile if profile.endswith(".toml") else None
    request = ProfileRequest(
        device=device, gpus=gpus, profile="auto" if file else profile, engine_count=1,
        origins={"engine_count": "Reranker"}, **_named(options, _OF_REQUEST),
    )  # fmt: skip
    template = options.get("template")
    if isinstance(template, Path):
        template = template.read_text(encoding="utf-8").removesuffix("\n")
    images = ImageLimits(options.get("max_input_tiles"), options.get("max_image_pixels", ImageLimits().max_pixels))
    return JobOptions(
        inputs=(), names=Names(STDOUT), model=None if model is None else str(model), request=request,
        profiles_file=file, images=images, template=template, **_named(options, _OF_ENCODER),
    )  # fmt: skip


def _with_rows(job: JobOptions, options: RowOptions) -> JobOptions:
    known = {field.name for field in fields(FieldNames)}
    given = {name.removesuffix("_field"): value for name, value in options.items()}
    names = FieldNames(**{name: cast("str | None", value) for name, value in given.items() if name in known})
    return replace(job, fields=names, selection=Selection(**_named(options, _OF_SELECTION)))


def _named(options: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: options[name] for name in names if name in options}
