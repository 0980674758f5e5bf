"""What a user can choose about rows and files, with the defaults: plain values that the command line loads quickly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

MAX_LINE_BYTES = 64 * 2**20
"""The longest line that is read, unless the user says otherwise."""

MAX_VALUES = 2**22
"""How many values a row of text may hold: `{},` is 3 bytes in a file and 70 in memory."""

NO_IMAGES = "none"
"""In place of a path: passages have no images, whatever their field `image` holds."""


@dataclass(frozen=True, slots=True)
class FieldNames:
    """Dotted paths that the user gave; None means the aliases.

    text: one path, or several with commas between them, whose texts are joined by a blank.
    id: of rows and of passages; where a row or passage has nothing there, its aliases are tried.
    siblings: the lists that are in step with the passages, with commas between them; `none` where there are none; None:
    the first rows tell.
    image: of a passage; `none` where passages have no images, whatever the row says. image_root: the folder that paths
    of images start from; None for the folder of the input file.
    """

    query: str | None = None
    passages: str | None = None
    text: str | None = None
    id: str | None = None
    group_by: str | None = None
    image: str | None = None
    image_root: str | None = None
    siblings: str | None = None

    @property
    def image_path(self) -> str:
        """Where the image of a passage is."""
        return self.image or "image"

    @property
    def of_rows(self) -> tuple[str, ...]:
        """The options that the user gave to name fields of our own shapes; requests have fixed field names."""
        options = {
            "--query-field": self.query,
            "--passages-field": self.passages,
            "--text-field": self.text,
            "--image-field": None if self.image == NO_IMAGES else self.image,
            "--group-by": self.group_by,
        }
        return tuple(option for option, value in options.items() if value is not None)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which scored passages come back, and with what.

    top_n: the first n of each list; threshold: only logits of at least this; prob: adds `prob`, the sigmoid of the
    logit. score: the name of the model's score in the output. probability: adds `probability`, what this function makes
    of the score (`--calibration`). scored_by: adds `scored_by`, which of two scorers gave it (`--first`).
    """

    top_n: int | None = None
    threshold: float | None = None
    prob: bool = False
    score: str = "logit"
    probability: Callable[[float], float] | None = None
    scored_by: bool = False


TEACHER_FORMATS = ("triplet", "n-tuple", "labeled-list", "flagembedding")
"""Rows to train another model on: shapes that are only written."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """Which passages go into rows to train on.

    negatives: how many a row, or a positive, gets. absolute_margin, relative_margin: how far they score below the
    positive. positive_field: the field that marks a positive passage; None where judgements do. relevant_from: the
    lowest grade of a positive.
    """

    negatives: int = 5
    absolute_margin: float = 0.0
    relative_margin: float = 0.05
    positive_field: str | None = None
    relevant_from: int = 1


@dataclass(frozen=True, slots=True)
class Texts:
    """The files with the texts of rows that hold ids only."""

    queries: str | None = None
    corpus: str | None = None


NO_TEXTS = Texts()
