"""`rerank-cli profile-select`: its options, and its answer as text, JSON or lines for a shell."""

from __future__ import annotations

import os
import shlex
import sys
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from rerank_cli.cli.console import command_to_paste, forget_stdout, print_json, say
from rerank_cli.cli.declare import CHOICE, MACHINE, SAY, option, takes
from rerank_cli.cli.json_command import JsonCommand, wants_json
from rerank_cli.cli.options import OF_RUNS, PLANNED
from rerank_cli.cli.parsers import parse_count
from rerank_cli.errors import EXIT_CODES, RerankError, UsageError, printable
from rerank_cli.machine.this_process import prepare_process
from rerank_cli.planning.choices import PAIRS, TOKENS, Policy, Requirement

if TYPE_CHECKING:
    from rerank_cli.machine.detect import Machine
    from rerank_cli.planning.profile_answer import MachinePlan

OPTIONS = [
    *PLANNED,
    option(
        "--policy", Policy, group=CHOICE, into="request.policy", metavar="NAME",
        help="What auto means: nim-2x, fp16, and fp8 only when asked for; nim-1x, the lowest precision.",
    ),
    option(
        "--require", Requirement, group=CHOICE, into="request.require", metavar="WHAT",
        help="optimized or fp8: exit with 6 if no such profile can run.",
    ),
    option(
        "--performance", bool, group=CHOICE, into="request.performance",
        help="More engines on a GPU of at least 80 GB.",
    ),
    option(
        "--gpu", list[str], group=MACHINE, metavar="NAME", basic=True,
        help="Plan for this GPU: L4, H100, RTX-4090, or 9.0:80GiB[:NAME]; may be given several times. "
        "all compares the cards that are known by name.",
    ),
    option(
        "--pairs", int, group=MACHINE, metavar="N", parse=parse_count, basic=True,
        help=f"With --gpu all: how many pairs the time is for, such as 10M. Default: {PAIRS:,}.",
    ),
    option(
        "--tokens", int, group=MACHINE, metavar="L", parse=parse_count, basic=True,
        help=f"With --gpu all: how long they are, query and passage together. Default: {TOKENS}.",
    ),
    option(
        "--fixture", str, group=MACHINE, metavar="FILE", help="Plan for the machine that this JSON file describes."
    ),
    option(
        "--list", bool, group=SAY, name="list_profiles", basic=True,
        help="All profiles of the model, and why one is not chosen.",
    ),
    option("--explain", bool, group=SAY, basic=True, help="In text, also every reason and rejected profile."),
    option(
        "--env", bool, group=SAY, basic=True,
        help="Print the plan as `export RERANK_...` lines for a shell, nothing else.",
    ),
]  # fmt: skip

EXAMPLES = r"""
How would the built-in model run on this machine?
  rerank-cli profile-select
How would another one run on another GPU, and why?
  rerank-cli profile-select --model nvidia/llama-nemotron-rerank-1b-v2 \
      --gpu L4 --explain
Which card does it need for ten million pairs a night?
  rerank-cli profile-select --model nvidia/llama-nemotron-rerank-1b-v2 \
      --gpu all --pairs 10M --tokens 300
Let every command of this shell run by the plan:
  eval "$(rerank-cli profile-select --env)"
"""


@takes(OPTIONS, examples=EXAMPLES, exit_codes=set(EXIT_CODES) - OF_RUNS)
def profile_select(
    context: typer.Context, *, model: str | None, gpu: list[str] | None, env: bool, list_profiles: bool, **given: Any
) -> int:
    """Say how a model would run on this machine, and why, before anything is loaded."""
    online, output_mode = given["online"], given["output_mode"]
    prepare_process(online=online)
    machine = _MachineInQuestion(gpu or [], given["fixture"])
    from rerank_cli.cli.plan_request import OF_MODEL, find_asked_model, read_plan_request
    from rerank_cli.planning.profile_answer import MachinePlan, environment_of
    from rerank_cli.planning.run_plan import plan_model

    try:
        if env and list_profiles:
            raise UsageError("--env and --list print different things: name one of them")
        # What is exported must run here: if torch cannot use the GPU, that is the plan for the CPU.
        asked = read_plan_request(context, assume_cuda=not env or bool(gpu))
        found = find_asked_model(model, profiles_file=asked.profiles_file, **{name: given[name] for name in OF_MODEL})
        known = found.known
        if gpu == ["all"]:
            if env or list_profiles or given["fixture"]:
                raise UsageError("--gpu all: compares cards, which --env, --list and --fixture have no place for")
            from rerank_cli.cli.cards_text import print_cards

            numbers = {"pairs": given["pairs"], "tokens": given["tokens"]}
            return print_cards(asked, known, **numbers, as_json=wants_json(output_mode))
        if given["pairs"] or given["tokens"]:
            raise UsageError("--pairs and --tokens: are for the comparison of cards", hint="`--gpu all` compares them")
        answer = plan_model(asked.request, known, machine.answer(), notes=(*asked.notes, *found.notes))
    except RerankError as error:
        answer = MachinePlan(error=error)
    try:
        if env:
            _print_environment(answer, environment_of(answer, model))
        elif wants_json(output_mode):
            print_json(_without_surrogates(answer.to_json(with_profiles=list_profiles)))
        else:
            here = not gpu and given["fixture"] is None
            _print_text(answer, model, list_profiles=list_profiles, explain=given["explain"], here=here)
        sys.stdout.flush()
    except BrokenPipeError:
        forget_stdout()  # here, because click gives it another exit code before main() sees it
        return 141
    if answer.error is not None:
        raise answer.error
    return 0


class ProfileSelectCommand(JsonCommand):
    """The command; the document of an error has no plan."""

    def error_document(self, error: RerankError) -> dict[str, Any]:
        """The document of an error."""
        from rerank_cli.planning.profile_answer import MachinePlan

        return MachinePlan(error=error).to_json()


class _MachineInQuestion:
    """The machine to plan for: described by options or by a file, or this one.

    Detecting this machine takes about 0.1 s, so a thread does it while other things are loaded.
    """

    def __init__(self, gpus: list[str], fixture: str | None) -> None:
        self._gpus, self._fixture = gpus, fixture
        self._found: Machine | None = None
        self._asking: threading.Thread | None = None
        if not gpus and fixture is None:
            self._asking = threading.Thread(target=self._ask, daemon=True)
            self._asking.start()

    def _ask(self) -> None:
        from rerank_cli.machine.detect import detect_machine

        self._found = detect_machine()

    def answer(self) -> Machine:
        """The machine; `UsageError` or `InputError` if its description is wrong."""
        from rerank_cli.machine.detect import describe_machine, detect_machine
        from rerank_cli.machine.fixture import load_machine_fixture

        if self._gpus and self._fixture is not None:
            raise UsageError("--gpu and --fixture both describe a machine: name one of them")
        if self._gpus:
            return describe_machine(self._gpus)
        if self._fixture is not None:
            return load_machine_fixture(self._fixture)
        if self._asking is not None:
            self._asking.join()
        return self._found or detect_machine()


# Output.


def _without_surrogates(value: Any) -> Any:
    """The document without surrogates, which UTF-8 cannot carry: file names may hold bytes that are no text."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    return {key: _without_surrogates(item) for key, item in value.items()} if isinstance(value, dict) else value


def _print_environment(answer: MachinePlan, variables: Mapping[str, str]) -> None:
    for name, value in variables.items():
        # As bytes: a folder's name need not be text.
        sys.stdout.buffer.write(os.fsencode(f"export {name}={shlex.quote(value)}\n"))
    sys.stdout.flush()
    say(*(f"warning: {warning}" for warning in answer.warnings))


def _print_text(answer: MachinePlan, model: str | None, *, list_profiles: bool, explain: bool, here: bool) -> None:
    from rerank_cli.cli.plan_text import faster_lines, plan_lines
    from rerank_cli.machine.libraries import install_command, missing_packages

    for line in plan_lines(answer, list_profiles=list_profiles, explain=explain):
        sys.stdout.write(printable(line) + "\n")
    if answer.plan is not None:
        for line in faster_lines(answer):
            sys.stdout.write(printable(line) + "\n")
        chosen = "" if model is None else f" --model {shlex.quote(model)}"
        command = f"rerank-cli rerank-file YOUR-FILE.jsonl -o OUT.jsonl{chosen}"
        if here and (missing := missing_packages()):  # first, the libraries that are missing here
            command = install_command(missing)
        sys.stdout.write("\n" + command_to_paste(command, sys.stdout, head="next: ") + "\n")
    sys.stdout.flush()
    say(*(f"warning: {warning}" for warning in answer.warnings))
