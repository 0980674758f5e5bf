"""Which logits of a classifier are its score; imports no torch.

    labels                     the score
    1                          its logit
    2                          logit[1] - logit[0]: label 1 is the relevant one, and the sigmoid is its probability
    more, or with `--label N`  logit[N], as the user says; without it three labels or more are refused

monoBERT and monoELECTRA have two labels. Source: pygaggle's classification reranker takes log_softmax of the last of
two labels, which gives the same order as this difference, and the raw logit of a single label.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.checkpoint.families import family_of
from rerank_cli.errors import ModelError, UsageError

# The last layer of a classifier, by the names that transformers gives it.
_HEAD = re.compile(r"^(classifier|classifier\.out_proj|score|logits_proj|sequence_summary\.summary)\.weight$")
_SHOWN = 5  # labels in a message
_DEFAULT_LABELS = 2  # what transformers assumes if config.json does not tell


@dataclass(frozen=True, slots=True)
class Score:
    """The score of a head with `labels` logits: logit[plus], minus logit[minus] if that is not None."""

    labels: int
    plus: int
    minus: int | None = None

    def __str__(self) -> str:
        if self.labels == 1:
            return "logit"
        return f"logit[{self.plus}]" + (f" - logit[{self.minus}]" if self.minus is not None else "")


def count_labels(checkpoint: Checkpoint) -> int:
    """How many logits the head gives, by config.json, else by the rows of the head."""
    names = checkpoint.config.get("id2label")
    if isinstance(names, dict):
        return len(names)
    if checkpoint.config.get("num_labels") is not None:
        return checkpoint.integer("num_labels")
    rows = {info.shape[0] for name, info in checkpoint.tensors.items() if _HEAD.search(name) and len(info.shape) == 2}
    return rows.pop() if len(rows) == 1 else _DEFAULT_LABELS


def read_score(checkpoint: Checkpoint) -> Score:
    """Which logits are the score.

    Raises `ModelError` for a model with more than two labels if none was chosen, and `UsageError` for a label that the
    model does not have.
    """
    labels = count_labels(checkpoint)
    if labels < 1:
        raise ModelError(f"{checkpoint.config_place}: the model gives {labels} labels, a reranker one logit")
    if checkpoint.label is not None:
        if not 0 <= checkpoint.label < labels:
            raise UsageError(
                f"--label {checkpoint.label}: {checkpoint.name} has {labels} label{'s' * (labels > 1)}, counted from 0"
            )
        return Score(labels, checkpoint.label)
    if labels > _DEFAULT_LABELS:
        names = checkpoint.config.get("id2label")
        shown = [f"{number} `{name}`" for number, name in names.items()] if isinstance(names, dict) else []
        if len(shown) > _SHOWN:
            shown = [*shown[:_SHOWN], "..."]
        told = f" ({', '.join(shown)})" if shown else ""
        raise ModelError(
            f"{checkpoint.config_place}: the model gives {labels} labels{told}, a reranker one score",
            hint="`--label N` takes the logit of one of them, counted from 0",
        )
    return Score(labels, 1, 0) if labels == _DEFAULT_LABELS else Score(1, 0)


def check_labels(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint without the labels that its family needs, or without the one that the user wants."""
    family = family_of(checkpoint.architecture)
    if family.answers or family.embeds or family.headless:
        if checkpoint.label is not None:
            raise UsageError(f"--label: {checkpoint.name} gives one score, and no labels")
    elif read_score(checkpoint).labels != 1 and family.prompted:
        raise ModelError(
            f"{checkpoint.config_place}: the model gives {count_labels(checkpoint)} labels, a reranker of this family "
            "one logit"
        )
