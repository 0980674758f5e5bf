"""Prints the answer of `profile-select --gpu all`: the cards that are known by name, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerank_cli.cli.console import print_json, print_table, say
from rerank_cli.planning.choices import PAIRS, TOKENS

if TYPE_CHECKING:
    from rerank_cli.cli.plan_request import PlanRequest
    from rerank_cli.planning.known_model import KnownModel


def print_cards(asked: PlanRequest, known: KnownModel, *, pairs: int | None, tokens: int | None, as_json: bool) -> int:
    """Print how the model would run on each card; returns the exit code, 6 if it fits none."""
    from rerank_cli.planning.card_time import BASIS, show_time
    from rerank_cli.planning.compare_cards import compare_cards
    from rerank_cli.planning.profiles.decision import show_gib

    pairs, tokens = pairs or PAIRS, min(tokens or TOKENS, known.max_tokens)
    cards = compare_cards(asked.request, known, pairs=pairs, tokens=tokens, notes=asked.notes)
    exit_code = 0 if any(card.plan for card in cards) else 6
    if as_json:
        document = {"schema": "rerank-cli/cards/1", "model": known.name, "pairs": pairs, "tokens": tokens}
        print_json({**document, "cards": [card.to_json() for card in cards]})
        return exit_code
    rows = []
    for card in cards:
        cells = [card.name, show_gib(card.total_bytes)]
        if card.plan is None:
            rows.append([*cells, "does not fit", "", "", ""])
            continue
        time = card.time
        took = show_time(time.low, time.high) if time else "not known"
        batch = "-" if card.largest_batch is None else f"{card.largest_batch:,}"
        rows.append([*cells, show_gib(card.plan.needed_bytes), card.plan.precision, batch, took])
    title = f"{known.name}: {pairs:,} pairs of {tokens:,} tokens"
    print_table(["GPU", "memory", "needed", "precision", "batch", "time"], rows, title=title)
    say("batch: the most pairs of this length that fit at a time; time: without the start of the program")
    limits = {card.time.limit for card in cards if card.time}
    if "host" in limits:
        say("note: where cards take equally long, reading and tokenising on the host is what takes it")
    for why in dict.fromkeys(why for card in cards if (why := card.no_time)):
        names = [card.name for card in cards if card.no_time == why]
        which = f" for {', '.join(names)}" if len(names) < len(cards) else ""
        say(f"note: the time is not known{which}: {why}")
    say(f"note: times are {BASIS}")
    say(f"other numbers: `--pairs N --tokens L`; defaults {PAIRS:,} and {TOKENS:,}")
    return exit_code
