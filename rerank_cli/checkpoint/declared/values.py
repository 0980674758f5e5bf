"""What a checkpoint declares about its score, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
MessageFormat = Literal["flat", "structured"]


@dataclass(frozen=True, slots=True)
class Pooling:
    """Joins token vectors into one: the vectors of all modes, side by side in this order.

    All real tokens count, special ones included.
    """

    modes: tuple[PoolingMode, ...]
    skips_prompt: bool = False  # the tokens of a prompt do not count, nor the special ones before it


@dataclass(frozen=True, slots=True)
class Dense:
    """`activation(weight x + bias)`, and `+ x` (or `+ residual x`) where `residual` is set.

    Its tensors are `FOLDER/linear.weight`, `FOLDER/linear.bias` and `FOLDER/residual.weight` of the checkpoint.
    """

    folder: str
    inputs: int
    outputs: int
    bias: bool
    activation: str  # a class of torch.nn that takes no arguments: `GELU`
    residual: bool
    scores: bool  # its output is the score


@dataclass(frozen=True, slots=True)
class DeclaredLayerNorm:
    """A layer norm with `FOLDER/norm.weight` and `FOLDER/norm.bias`, epsilon 1e-5."""

    folder: str
    size: int


@dataclass(frozen=True, slots=True)
class Normalize:
    """Divides a vector by its Euclidean length (at least 1e-12)."""


@dataclass(frozen=True, slots=True)
class LogitScore:
    """The score is a logit of the last token, or a difference of two.

    true_id, false_id: rows of the output table. false_id: None for the logit of `true_id` alone.
    """

    true_id: int
    false_id: int | None


Module = Pooling | Dense | DeclaredLayerNorm | Normalize | LogitScore


@dataclass(frozen=True)
class Declaration:
    """What a checkpoint's files say about its score, beside config.json and the tokenizer.

    Without a modules.json only the chat template is read, and the rest keeps its defaults.
    """

    listed: bool = False  # there is a modules.json
    modules: tuple[Module, ...] = ()  # behind the model, in the order in which they run
    model_folder: str = ""  # of config.json, tokenizer and weights, below the checkpoint
    max_tokens: int | None = None  # replaces the tokenizer's limit
    lower_case: bool = False  # the whole text, before the tokenizer's own normaliser
    prompts: Mapping[str, str] = field(default_factory=dict)
    prompt: str | None = None  # the default prompt; never empty
    similarity: str | None = None  # of an embedding model: `cosine` or `dot`
    message_format: MessageFormat | None = None  # pairs go through the chat template in this form; None: plain pairs
    chat_template: str | None = None
    chat_template_place: str = ""  # its file, and the key in it
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()  # the files that were read, below the checkpoint

    @property
    def logit_score(self) -> LogitScore | None:
        """The module that gives the score of a language model."""
        return next((module for module in self.modules if isinstance(module, LogitScore)), None)

    @property
    def pooling(self) -> Pooling | None:
        """The module that joins token vectors into one, for a model without its own head."""
        return next((module for module in self.modules if isinstance(module, Pooling)), None)

    @property
    def embeds(self) -> bool:
        """Whether the modules give a vector and no score."""
        return self.pooling is not None and not any(isinstance(one, Dense) and one.scores for one in self.modules)

    @property
    def head(self) -> tuple[Module, ...]:
        """The modules behind the pooling, if they give the score; empty otherwise."""
        return () if self.pooling is None or self.embeds else self.modules[1:]

    @property
    def module_weights(self) -> tuple[Path, ...]:
        """The weight files of the modules, below the checkpoint."""
        folders = [one.folder for one in self.modules if isinstance(one, (Dense, DeclaredLayerNorm))]
        return tuple(Path(folder) / "model.safetensors" for folder in folders)


UNDECLARED = Declaration()
