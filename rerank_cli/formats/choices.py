"""What a user can choose of rows and files, with the defaults: plain values that the command line reads quickly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

MAX_LINE_BYTES = 64 * 2**20
"""The longest line of JSON that is read where nothing else is said."""

MAX_VALUES = 2**22
"""How many values a row of text may hold: `{},` is 3 bytes in a file and 70 in memory."""

NO_IMAGES = "none"
"""In place of a path to the image: what stands in `image` is no image of the passage."""


@dataclass(frozen=True, slots=True)
class FieldNames:
    """Dotted paths that the user gave; None means the aliases.

    text: one path, or several with commas between them, whose texts are joined by a blank.
    id: of a row and of a passage; where the one or the other has nothing there, its aliases are tried.
    siblings: lists beside that of the passages that are in step with it, with commas between them; `none`: there are
    none; None: as far as the first rows show it.
    image: of a passage; `none` where passages have no images, whatever the row says. image_root: the folder that paths
    of images start from; None for that of the input file.
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
        """The options that name fields of our own shapes; the requests of other programs have theirs by definition."""
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
    logit. score: what the model's score is called in the output. probability: adds `probability`, what this makes of
    the score (`--calibration`). scored_by: adds `scored_by`, which of two scorers has given it (`--first`).
    """

    top_n: int | None = None
    threshold: float | None = None
    prob: bool = False
    score: str = "logit"
    probability: Callable[[float], float] | None = None
    scored_by: bool = False


TEACHER_FORMATS = ("triplet", "n-tuple", "labeled-list", "flagembedding")
"""Rows to train another model on: shapes of outputs alone."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """Which passages stand in rows to train on.

    negatives: of a row, or of a positive. absolute_margin, relative_margin: by how much they lie below the positive.
    positive_field: of a passage; None where judgements say it. relevant_from: the lowest grade of a positive.
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
