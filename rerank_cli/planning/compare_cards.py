"""Which card does a model need? For each known card: whether the model fits, and how long pairs take there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rerank_cli.errors import ModelError, RerankError
from rerank_cli.machine.detect import describe_machine
from rerank_cli.machine.gpu_names import CARDS, speed_of
from rerank_cli.planning.card_time import PairLengths, PairTime, pair_time, time_to_json, why_no_time
from rerank_cli.planning.choices import ProfileRequest
from rerank_cli.planning.known_model import KnownModel
from rerank_cli.planning.memory import MemoryModel, Placement
from rerank_cli.planning.memory.question import MemoryQuestion
from rerank_cli.planning.profiles import ProfilePlan
from rerank_cli.planning.run_plan import plan_model


@dataclass(frozen=True, slots=True)
class CardAnswer:
    """What one card would do.

    plan: None where the model does not fit; `reason` says why. largest_batch: the most pairs of the asked length that
    fit into one batch. time: None where it cannot be estimated; `no_time` says why.
    """

    name: str
    total_bytes: int
    plan: ProfilePlan | None = None
    reason: str | None = None
    largest_batch: int | None = None
    time: PairTime | None = None
    no_time: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The row of a document."""
        plan, time = self.plan, self.time
        names = ("profile", "precision", "max_tokens", "token_budget", "needed_bytes")
        return {
            "name": self.name,
            "total_bytes": self.total_bytes,
            "fits": plan is not None,
            "reason": self.reason,
            **{name: plan and getattr(plan, name) for name in names},
            "largest_batch": self.largest_batch,
            "time": time and time_to_json(time),
        }


def compare_cards(
    request: ProfileRequest, known: KnownModel, *, pairs: int, tokens: int, notes: Iterable[str] = ()
) -> list[CardAnswer]:
    """The answer of each card that is known by name: `pairs` pairs of `tokens` tokens each."""
    model, notes = _memory_model_of(known), tuple(notes)

    def try_card(name: str, total: int) -> CardAnswer:
        try:
            answer = plan_model(request, known, describe_machine([name]), notes=notes)
        except RerankError as error:
            return CardAnswer(name, total, reason=error.message)
        plan, speed = answer.plan, speed_of(name)
        if plan is None or plan.kind == "cpu":
            reasons = [""] + ([one.reason for one in answer.rejected] or list(answer.reasons))
            return CardAnswer(name, total, reason=answer.error.message if answer.error else reasons[-1])
        if model is None:
            return CardAnswer(name, total, plan, no_time=why_no_time(None, speed, precision=plan.precision))
        (gpu,) = plan.gpus
        length = min(tokens, plan.max_tokens)
        place = Placement(precision=plan.precision, sku=gpu.sku, capability=gpu.compute_capability)
        batch = MemoryQuestion(model, place, capacity=total).largest_batch(length)
        time = pair_time(model.shape, PairLengths.of(pairs, length), speed, precision=plan.precision)
        why = why_no_time(model.shape, speed, precision=plan.precision)
        return CardAnswer(name, total, plan, largest_batch=batch, time=time, no_time=why)

    return [try_card(card.name, card.total_bytes) for card in CARDS]


def time_of_plan(
    plan: ProfilePlan, known: KnownModel, lengths: PairLengths, *, images: bool
) -> tuple[PairTime | None, str | None]:
    """How long pairs take when the plan's GPUs share them; else None, and why: GPUs must all be of one name.

    images: whether some pairs have one.
    """
    model = _memory_model_of(known)
    names = {gpu.name for gpu in plan.gpus}
    speed = speed_of(names.pop()) if len(names) == 1 else None
    shape = model.shape if model else None
    why = why_no_time(shape, speed, precision=plan.precision, images=images)
    if why or shape is None:
        return None, why
    return pair_time(shape, lengths, speed, precision=plan.precision, engines=len(plan.gpus)), None


def _memory_model_of(known: KnownModel) -> MemoryModel | None:
    try:
        return known.memory_model()
    except ModelError:
        return None  # no shape in its profile, or a classifier of transformers whose forward alone would tell
