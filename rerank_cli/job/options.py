"""The options of a run, with their defaults; those that one package needs are in its `choices.py`, and nowhere else.

The command line (`cli/options.py` declares the options, `cli/job_request.py` makes these values of them), `Reranker`
and the tests all start here. This module imports nothing that is slow to load, because `--help` reads the defaults.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from rerank_cli.encoding.choices import CHUNK_OVERLAP, ImageLimits, Pool, SpecialTokens, Truncation
from rerank_cli.errors import InputError, UsageError
from rerank_cli.formats.choices import (
    MAX_LINE_BYTES,
    NO_TEXTS,
    TEACHER_FORMATS,
    FieldNames,
    Selection,
    Teacher,
    Texts,
)
from rerank_cli.job.error_limit import ErrorLimit
from rerank_cli.job.number_limits import MOST_ROWS, MOST_TOKENS, refuse_too_large, refuse_too_many_engines
from rerank_cli.planning.choices import ProfileRequest
from rerank_cli.storage import is_url, path_of, refuse_url

if TYPE_CHECKING:
    from rerank_cli.evaluation.blend import Blend

STDOUT = "-"
PAGE_SUFFIXES = (".html", ".htm")
STORE_LIMIT = 10 * 10**9
"""The default, in bytes: some 150 million pairs."""
LEAST_STORE = 10**6


class TemplateText(str):
    """The text of a template, with the path of its file."""

    def __new__(cls, text: str, path: str) -> Self:
        """The text that was read from `path`."""
        made = super().__new__(cls, text)
        made.path = path
        return made

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]  # `path` is an argument here
        """The arguments that copies and other processes make the text from."""
        return str(self), self.path

    path: str


@dataclass(frozen=True, slots=True)
class Command:
    """The command that repeats a run: a line for a shell, and the folder to run it in."""

    line: str
    folder: str


@dataclass(frozen=True, slots=True)
class Names:
    """The names of the outputs of a run; None is the default: beside `output`, or nowhere for stdout."""

    output: str
    errors: str | None = None
    report: str | None = None
    """Of the JSON document, or of a page (`.html`); with a page, the document has its default name."""
    out_format: str = "auto"
    embeddings: str | None = None
    per_query: str | None = None
    title: str | None = None
    """Of the page, in place of the output's name."""

    @property
    def results(self) -> tuple[str, ...]:
        """The kinds of files that are the results of the run."""
        return tuple(name for name in ("output", "embeddings", "per_query") if name in self.files)

    @property
    def files(self) -> dict[str, Path]:
        """The files by kind, the output last; stdout is not among them."""
        beside = "" if self.output == STDOUT else self.output
        page = self.report if self.report and Path(self.report).suffix.lower() in PAGE_SUFFIXES else None
        paths = {
            "errors": self.errors or (beside and f"{beside}.errors.jsonl"),
            "report": (self.report if page is None else None) or (beside and f"{beside}.report.json"),
            "page": page,
            "embeddings": self.embeddings,
            "per_query": self.per_query,
            "output": beside,
        }
        path_of(beside)  # a message about its URL names it, before the names that are made of it
        return {kind: path_of(path) for kind, path in paths.items() if path}


@dataclass(frozen=True, slots=True)
class First:
    """The cheap scorer of a cascade, which reads every candidate (`job/cascade`)."""

    scorer: str | None = None
    """A model, a precision of the run's own model, or MODEL:PRECISION; None for no cascade."""
    keep: str | None = None
    """What the run's own model reads: a number, a percentage, `auto` or `exact`. None: exact for a precision, else
    auto."""
    top: int | None = None
    """How many passages at the head of a list should be those of a full run. None: `--top-n`, else 10."""


NO_FIRST = First()


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What the user asked for; every field that changes the output's bytes is here.

    The default of a field, also in a dataclass of a field, is the default of its option in `cli/options.py`.
    """

    inputs: tuple[str, ...]
    """Files, folders (`--engine ray`) or `-`."""
    names: Names
    pairs: bool = False
    """`score`: one pair a row, input order."""
    query: str | None = None
    """One query for all rows."""
    in_format: str = "auto"
    shape: str = "auto"
    texts: Texts = NO_TEXTS
    fields: FieldNames = field(default_factory=FieldNames)
    model: str | None = None
    """A folder or a Hugging Face id; None is the built-in model."""
    revision: str | None = None
    online: bool = False
    request: ProfileRequest = field(default_factory=ProfileRequest)
    request_notes: tuple[str, ...] = ()
    """Variables that `request` did not use."""
    profiles_file: str | None = None
    truncate: Truncation = "end"
    chunk_overlap: int = CHUNK_OVERLAP
    pool: Pool = "max"
    special_tokens: SpecialTokens = "neutral"
    images: ImageLimits = field(default_factory=ImageLimits)
    instruction: str | None = None
    label: int | None = None
    max_unknown: float | None = None
    """A pair with a larger share of unknown tokens is not scored."""
    template: str | None = None
    """The text of a template (`TemplateText` if it was a file), or `none`."""
    taken_as: str | None = None
    """The family of rerankers that the model belongs to, if its files do not tell."""
    selection: Selection = field(default_factory=Selection)
    error_limit: ErrorLimit = field(default_factory=ErrorLimit)
    overwrite: bool = False
    restart: bool = False
    checkpoint_every: float = 5.0
    """Seconds, as `lock_wait` and `deadline`."""
    lock_wait: float = 0.0
    deadline: float | None = None
    shard: tuple[int, int] | None = None
    """(i, n): the i-th of n parts."""
    skip: int = 0
    limit: int | None = None
    max_line_bytes: int = MAX_LINE_BYTES
    qrels: str | None = None
    metrics: tuple[str, ...] = ("nDCG@10",)
    calibration: str | None = None
    """A file that turns scores into probabilities of relevance; it adds `probability`."""
    command: Command | None = None
    """The command line, for the report."""
    teacher: Teacher = field(default_factory=Teacher)
    """For formats of rows to train on."""
    depth: int | None = None
    """How many candidates of a list are scored, from its start; the others keep their place. None: all."""
    blend: Blend | None = None
    """How the scores are joined with the given order."""
    drop_duplicates: bool = False
    """Leave out passages that repeat one before them in their list (`duplicates.py`)."""
    first: First = field(default_factory=First)
    """The cheap scorer that reads every candidate, if there is one."""
    check_precision: int | None = None
    """Pairs that are scored in fp32 too."""
    store: str | None = None
    """A folder of scores that runs share."""
    store_limit: int = STORE_LIMIT
    """Bytes of its database."""


def refuse_unusable(options: JobOptions) -> None:
    """Refuse values that make no sense, before the run starts."""
    # Imported here: it is slow to load, and the command line reads the defaults above before there is a run.
    from rerank_cli.formats.inputs import can_be_reread, resolve_inputs

    refuse_too_large(
        {
            "--top-n": options.selection.top_n, "--limit": options.limit, "--skip": options.skip,
            "--max-line-bytes": options.max_line_bytes, "--max-errors": options.error_limit.rows,
        },
        MOST_ROWS,
    )  # fmt: skip
    refuse_too_large(
        {
            "--max-tokens": options.request.max_tokens, "--token-budget": options.request.token_budget,
            "--chunk-overlap": options.chunk_overlap, "--check-precision": options.check_precision,
        },
        MOST_TOKENS,
    )  # fmt: skip
    refuse_too_many_engines(options.request.engine_count)
    refuse_url("--image-root", options.fields.image_root)
    refuse_url("--profile", options.profiles_file)
    for path in options.names.files.values():
        if options.model and is_url(options.model) and path.is_relative_to(path_of(options.model)):
            raise UsageError(f"{path}: lies in the folder of the model", hint="write to another folder")
    threshold = options.selection.threshold
    if threshold is not None and not math.isfinite(threshold):
        raise UsageError(f"--threshold {threshold}: not a number to compare with")
    if options.shard and options.pairs and options.selection.top_n is not None:
        raise UsageError("--shard: the best rows of a part are not the best of the whole", hint="leave out --top-n")
    if options.shard and not can_be_reread(resolve_inputs(options.inputs, options.in_format, options.shape)):
        raise UsageError("--shard: a pipe cannot be cut in parts", hint="give the name of a file")
    refuse_store(options)
    _refuse_names(options)
    root = options.fields.image_root
    if root is not None and not Path(root).is_dir():
        raise InputError(f"--image-root {root}: no such folder")
    try:
        (options.query or "").encode()
    except UnicodeEncodeError as error:
        raise UsageError("--query: not UTF-8") from error


def _refuse_names(options: JobOptions) -> None:
    """`UsageError` for a title or a file without what it belongs to."""
    names = options.names
    if names.title is not None and "page" not in names.files:
        raise UsageError("--title: there is no page for it", hint="`--report run.html` writes one")
    if names.per_query:
        from rerank_cli.evaluation.per_query import refuse_per_query_name  # slow to load, as above

        refuse_per_query_name(names.per_query)
        if options.qrels is None:
            raise UsageError("--per-query: nothing is measured without judgements", hint="name them with `--qrels`")


@dataclass(frozen=True, slots=True)
class Need:
    """What an option changes nothing without."""

    fields: Mapping[str, str]
    """The fields of which one will do, each with the option that sets it, as one types it."""
    values: tuple[str, ...] = ()
    """The values of a field that will do; none: any."""


_CHUNKS = Need({"truncate": "--truncate chunk"}, ("chunk",))
_FIRST = Need({"first.scorer": "--first MODEL|PRECISION"})
_TRAINING = Need({"names.out_format": f"--out-format {'|'.join(TEACHER_FORMATS)}"}, TEACHER_FORMATS)
NEEDS: Final[Mapping[str, Need]] = {
    "chunk_overlap": _CHUNKS, "pool": _CHUNKS, "store_limit": Need({"store": "--store DIR"}),
    "metrics": Need({"qrels": "--qrels FILE"}), "first.keep": _FIRST, "first.top": _FIRST,
    "teacher.negatives": _TRAINING, "teacher.absolute_margin": _TRAINING, "teacher.relative_margin": _TRAINING,
    "teacher.positive_field": _TRAINING, "teacher.relevant_from": _TRAINING,
}  # fmt: skip
"""What options of a run need, by the fields that they set."""


def refuse_idle(options: object, typed: Mapping[str, str], needs: Mapping[str, Need] = NEEDS) -> None:
    """`UsageError` for an option that would change nothing.

    Args:
        options: Has all fields.
        typed: By its field, each option that somebody has typed for this run. One of the environment is for many runs.
        needs: By its field, what an option needs.
    """
    for path, need in needs.items():
        found = [attrgetter(field)(options) for field in need.fields]
        if path in typed and not any(one in need.values if need.values else one is not None for one in found):
            others = " or ".join(f"`{option}`" for option in need.fields.values())
            raise UsageError(f"{typed[path]}: changes nothing without {others}")


def refuse_store(options: JobOptions) -> None:
    """`UsageError` for a store with an impossible folder or limit."""
    if options.store is not None and _is_no_folder(Path(options.store).expanduser()):
        raise UsageError(f"--store {options.store}: not a folder", hint="name a folder, which is made if need be")
    if options.store == "":
        raise UsageError("--store: an empty name", hint="name a folder, which is made if need be")
    if options.store_limit < LEAST_STORE:
        raise UsageError(f"--store-limit {options.store_limit}: at least {LEAST_STORE:,} bytes")


def _is_no_folder(path: Path) -> bool:
    """Whether something else is there; false where that cannot be seen, which is told when the store is opened."""
    try:
        return path.exists() and not path.is_dir()
    except OSError:
        return False
