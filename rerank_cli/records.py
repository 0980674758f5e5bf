"""The values that flow from a reader to a writer.

    Row              one input row as it stands in a file                       formats/jsonl.py, parquet_reader.py
    RowError         a row that cannot be scored, with the reason               anywhere a row is looked at
    Gap              a blank line, or a pause of a live input                   formats/jsonl.py
    ImagePassage     a passage with an image, beside or in place of its text    formats/shapes/
    CandidateList    one query with its passages, and the rows they came from   formats/shapes/
    Window           whole candidate lists that are scored together             job/windows.py
    EncodedPair      the token ids of one query-passage pair                    encoding/
    RankedPassage    place and logit of one passage                             job/ranking.py
    RankedList       the passages of one query in rank order                    job/ranking.py

A pair is known from start to end by (candidate list, index of the passage in it), so results may arrive in any order.
Nothing here imports torch, numpy or pyarrow; `EncodedPair.input_ids` is a numpy array only by name.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit)) in float64, for any logit."""
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    grown = math.exp(logit)
    return grown / (1 + grown)


class Row(Protocol):
    """One input row: where it stands, the fields that were parsed, and its bytes for the errors file."""

    @property
    def file(self) -> str:
        """Name of the input as the user gave it (`-` for stdin)."""

    @property
    def number(self) -> int:
        """Row number in its file, from 1; blank lines count, so that editors and `sed -n` find it."""

    @property
    def fields(self) -> Mapping[str, Any]:
        """The row's fields by name; for Parquet only the columns that the shape reads."""

    @property
    def raw(self) -> bytes:
        """The row as it stands in the file (JSONL), or as one JSON object (Parquet)."""


@dataclass(frozen=True, slots=True)
class JsonRow:
    """A row of a text format; satisfies `Row`."""

    file: str
    number: int
    fields: Mapping[str, Any]
    raw: bytes


@dataclass(frozen=True, slots=True)
class RowError:
    """A row that cannot be scored, as it goes to the errors file; or one passage of a list that is ranked without it.

    code: a stable word for programs (`bad-json`, `missing-field`, ...); message: a sentence for people.
    passage: the place of the passage in its list, from 0; None where the whole row is bad. passage_id: its id. `raw` is
    then the passage alone.
    """

    file: str
    row: int
    id: object
    code: str
    message: str
    raw: bytes
    passage: int | None = None
    passage_id: object = None


class Gap(enum.Enum):
    """What a reader yields between rows."""

    BLANK = "blank"  # a line with nothing but white space: counted, neither scored nor an error
    IDLE = "idle"  # a live input has nothing more right now: what is there should be scored


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Where an image is, as its row says; nothing has been opened yet.

    value: a path below `root`, a `data:` URI, or the bytes of the file. root: the folder that paths start from.
    """

    value: str | bytes
    root: str = "."


@dataclass(frozen=True, slots=True)
class ImagePassage:
    """A passage with an image; `text` is what stands beside it, often nothing."""

    text: str
    image: ImageSource


Passage = str | ImagePassage
"""What is held against a query. Hashable: pairs that are equal are scored once."""


class Limits(NamedTuple):
    """How long the pairs of one request may be, where it says so itself. A tuple: it is hashed for each pair.

    whole: a pair that is too long for the model is a problem and never cut, whatever `--truncate` says.
    passage_tokens: the text of every passage is cut to so many.
    """

    whole: bool = False
    passage_tokens: int | None = None


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class CandidateList:
    """One query with its passages.

    rows: the one row that held the whole list, or one row for each passage (flat shapes), in input order.
    id: the query's id if the input has one, for messages and evaluation.
    limits, top_n: what the request asks for itself. queries: one for each passage, where they differ.
    places: where each of `passages` stands in the list of its row, if some of that list cannot be scored; else empty.
    passage_error: how a passage that has no score is told, by (place, code, message); None where one makes its whole
    list bad, as in a request.
    whole: of which this is the head that is scored (`--depth`); the other passages keep their place.
    duplicates: passages that were left out because one before them says the same (`--drop-duplicates`).
    """

    query: str
    passages: tuple[Passage, ...]
    rows: tuple[Row, ...]
    id: object = None
    limits: Limits = NO_LIMITS
    top_n: int | None = None
    queries: tuple[str, ...] = ()
    places: tuple[int, ...] = ()
    passage_error: Callable[[int, str, str], RowError] | None = field(default=None, compare=False)
    whole: CandidateList | None = None
    duplicates: int = 0

    @property
    def pairs(self) -> list[tuple[str, Passage]]:
        """(query, passage) of each passage."""
        return list(zip(self.queries or [self.query] * len(self.passages), self.passages, strict=True))

    def place_of(self, index: int) -> int:
        """The place in the list of its row of `passages[index]`."""
        return self.places[index] if self.places else index

    def row_of(self, place: int) -> Row:
        """The row that the passage at this place came from."""
        return self.rows[place if len(self.rows) > 1 else 0]


@dataclass(frozen=True, slots=True)
class Window:
    """Whole candidate lists that are read, encoded and scored together, with the bad rows between them.

    Windows are cut by the input and the options alone, so the same run forms the same batches. share: of the input that
    is read with it, if that is known. has_images: whether a passage has one.
    """

    number: int
    lists: tuple[CandidateList, ...]
    errors: tuple[RowError, ...]
    rows: int
    blank: int
    share: float | None = field(default=None, compare=False)
    has_images: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Tiles:
    """The tiles of an image as a vision tower reads them: uint8 [tiles, size, size, 3].

    Two are the same image in the same grid if they are the same object.
    """

    pixels: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True, slots=True)
class ImageBlock:
    """The place of an image among the token ids of a pair.

    start: of its first token; length: of its tokens, each of which takes one vision vector. tiles: how many it has.
    full_tiles: how many it would have in a pair without a limit. image: None once the pair is scored. digest: equal for
    the same file in the same grid, and for nothing else, in all of a run.
    """

    start: int
    length: int
    tiles: int
    full_tiles: int
    image: Tiles | None
    digest: bytes = b""


@dataclass(slots=True)  # frozen, each would take 1.2 us to make in place of 0.2
class EncodedPair:
    """The token ids of one pair (or of one chunk of it), after truncation. Nobody changes it.

    input_ids: int32 [kept tokens], template and special tokens included; often a view of those of a whole window.
    second_start: where token type 1 begins; `len(input_ids)` where the model has a single type.
    tokens: length before truncation.
    block: where its image stands, if it has one.
    template: how many of the ids stand around the texts. unknown: how many stand for what the vocabulary lacks.
    unpooled: how many at the begin no pooling counts, of a model that declares so for its prompt.
    """

    input_ids: npt.NDArray[np.int32]
    second_start: int
    tokens: int
    block: ImageBlock | None = None
    template: int = 0
    unknown: int = 0
    unpooled: int = 0

    @property
    def truncated(self) -> bool:
        """Some tokens were cut."""
        return self.tokens > len(self.input_ids)

    @property
    def retiled(self) -> bool:
        """Its image was cut in fewer tiles than it would have had, so that the pair fits."""
        return self.block is not None and self.block.full_tiles > self.block.tiles


@dataclass(slots=True)  # not frozen, for the time that takes: see `EncodedPair`
class RankedPassage:
    """One scored passage: `rank` from 1, `index` in the input list from 0, `logit` as the model gave it (float32).

    tokens, kept_tokens: length of the pair before and after truncation. tiles, kept_tiles: of its image, likewise; it
    has fewer where the pair would not have fitted. The logit of a passage below `--depth`, which no model has seen, is
    NaN. Rank 0 is a passage without a score that is kept in its place (`formats/in_memory.py`). scored_by: `first` or
    `second`, of the two scorers of a cascade; empty where there is one.
    """

    rank: int
    index: int
    logit: float
    tokens: int
    kept_tokens: int
    tiles: int = 0
    kept_tiles: int = 0
    scored_by: str = ""

    @property
    def is_scored(self) -> bool:
        """A model has seen it: it does not stand below `--depth`."""
        return not math.isnan(self.logit)

    @property
    def truncated(self) -> bool:
        """Some tokens of the pair were cut."""
        return self.tokens > self.kept_tokens

    @property
    def retiled(self) -> bool:
        """Its image was cut in fewer tiles than it would have had, so that the pair fits."""
        return self.tiles > self.kept_tiles

    @property
    def probability(self) -> float:
        """Sigmoid of the logit."""
        return sigmoid(self.logit)


@dataclass(frozen=True, slots=True)
class RankedList:
    """The passages of one query in rank order; passages that the user's selection dropped are not in `ranking`.

    tokens: of all its pairs, those of dropped passages included, after truncation.
    """

    source: CandidateList
    ranking: tuple[RankedPassage, ...]
    tokens: int = 0


WORK: Final = ("computed_tokens", "pairs_repeated", "tokens_repeated")
"""Of `Counts`: what it has taken, which goes by what the processes of a run knew."""


@dataclass(slots=True)
class Counts:
    """What a run has done so far.

    rows_in: rows read, bad ones included, blank lines not. rows_out: of these, the ones that were scored; a list is, if
    one of its passages is. passages_error: passages that cannot be scored, of lists that are ranked without them: they
    are in the errors file and in none of the numbers of rows. output_rows: rows written. pairs_scored: distinct pairs
    of windows that have their score from the model, and not from a store. tokens: what a model reads of these, after
    truncation; an embedder reads what several pairs share once. pairs_found, tokens_found: distinct pairs of a window
    whose scores the store knew, and their tokens. dropped: passages that the user left out. near_duplicates: passages
    that say what one before them in their list says (`job/duplicates.py`), dropped or not. ties: neighbours in rank
    order with equal logits. images, tiles: what a vision tower saw; image_tokens: of the tokens, those that stand for
    images; retiled: passages whose image was cut in fewer tiles to fit. out_of_memory_splits: batches that did not
    fit and were cut. fp32_reruns: pairs (of an embedding model texts) whose result was no number and that were
    computed again in fp32. lists_without_rows: with too few negatives to train on. empty_lists: written without a
    passage, as they had none, or none at or above the threshold. computed_tokens: what engines have
    computed, with tokens that only fill batches up; 0 where nobody counts them. engine_deaths: processes that scored
    pairs, ended by themselves and were started again. pairs_repeated, tokens_repeated: of `pairs_scored` those that an
    earlier window of the process had, so that nothing was computed.

    All but `WORK` are the same whatever has computed a pair, and wherever a run was stopped and went on.
    """

    rows_in: int = 0
    rows_out: int = 0
    rows_error: int = 0
    passages_error: int = 0
    blank: int = 0
    output_rows: int = 0
    lists: int = 0
    pairs: int = 0
    pairs_scored: int = 0
    tokens: int = 0
    truncated: int = 0
    chunked: int = 0
    dropped: int = 0
    lists_without_rows: int = 0
    empty_lists: int = 0
    ties: int = 0
    empty_queries: int = 0
    empty_passages: int = 0
    images: int = 0
    tiles: int = 0
    image_tokens: int = 0
    retiled: int = 0
    out_of_memory_splits: int = 0
    fp32_reruns: int = 0
    engine_deaths: int = 0
    computed_tokens: int = 0
    pairs_found: int = 0
    tokens_found: int = 0
    near_duplicates: int = 0
    pairs_repeated: int = 0
    tokens_repeated: int = 0

    @property
    def done(self) -> dict[str, int]:
        """By name, what was done; `WORK` is left out."""
        return {name: number for name, number in asdict(self).items() if name not in WORK}

    @property
    def in_errors_file(self) -> int:
        """Bad rows, and bad passages of rows that are not."""
        return self.rows_error + self.passages_error

    def add(self, more: Mapping[str, int]) -> None:
        """Count `more`, by name."""
        for name, number in more.items():
            setattr(self, name, getattr(self, name) + number)


@dataclass(slots=True)
class Timing:
    """Seconds that each stage worked; reading and tokenising run beside the others.

    load: of the weights. wait: of the computing thread for a window that is read and tokenised. images: of the
    tokenising thread, reading images or waiting for those who do; not in `tokenise`. write: committing too.
    """

    load: float = 0.0
    wait: float = 0.0

    read: float = 0.0
    images: float = 0.0
    tokenise: float = 0.0
    compute: float = 0.0
    write: float = 0.0
