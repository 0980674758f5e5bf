"""Which actor does which part when actors die, on a cluster that is played: no Ray."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import rerank_cli
from rerank_cli.cluster.actors import Actors, ClusterOptions, Resources, connected
from rerank_cli.cluster.folder import OutputFolder
from rerank_cli.cluster.scorer import ActorHost, PartOutcome
from rerank_cli.cluster.tasks import Task
from rerank_cli.errors import EngineError, StoppedError
from rerank_cli.job.options import JobOptions, Names
from rerank_cli.job.run import Watcher
from rerank_cli.job.stop import Stop


class RayThatIsStopped(ModuleType):
    """Ray, as SIGTERM comes while it connects: with a handler of its own."""

    def init(self, **_: Any) -> None:
        signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(number))
        signal.raise_signal(signal.SIGTERM)


def test_sigterm_while_ray_connects_stops_the_run_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", RayThatIsStopped("ray"))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedError) as raised, Stop().listening(), connected(ClusterOptions("auto")):
        pass
    assert raised.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before


TASKS = [Task("/in.jsonl", f"{n}.jsonl", n, 4) for n in range(1, 5)]


class RayError(Exception):
    """What Ray raises for a dead actor."""


class RayTaskError(RayError):
    """What Ray raises for a fault in an actor."""


Answer = Callable[[], Any]


@dataclass
class PlayedRay:
    """A cluster in which each actor does as is told: `places` and `parts` by its number, from 0; None never answers."""

    places: dict[int, Answer | None] = field(default_factory=dict)
    parts: dict[int, Answer] = field(default_factory=dict)
    started: int = 0
    cores: dict[int, set[tuple[int, ...]]] = field(default_factory=dict)
    waits: int = 0
    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def remote(self, **_: Any) -> Callable[[type], Any]:
        return lambda _scorer: SimpleNamespace(remote=self._start)

    def _start(self) -> Any:
        number, self.started = self.started, self.started + 1
        found = ActorHost("here", "node", rerank_cli.__version__, (0, 1, 2, 3), ())
        place = self.places.get(number, lambda: found)

        def do(_options: Any, cores: tuple[int, ...]) -> tuple[Answer]:
            self.cores.setdefault(number, set()).add(cores)
            done = PartOutcome({"counts": {}}, None)
            return (self.parts.get(number, lambda: done),)

        return SimpleNamespace(
            place=SimpleNamespace(remote=lambda _paths: (place, number)), do=SimpleNamespace(remote=do)
        )

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        del timeout
        self.waits += 1
        assert self.waits < 1000, "waits for ever"
        return [one for one in references if one[0] is not None][:1], []

    def get(self, reference: Any) -> Any:
        return reference[0]()

    def available_resources(self) -> dict[str, float]:
        return {"CPU": 0.0}

    def kill(self, handle: Any) -> None:
        """Nothing: the test ends."""


def dies() -> Any:
    raise RayError("the actor has died")


def do_all(ray: PlayedRay, tmp_path: Path, told: list[str], engines: int = 2) -> int:
    """How many parts were finished."""
    options = JobOptions(inputs=("/in.jsonl",), names=Names(str(tmp_path / "out")))
    watcher = Watcher(on_note=told.append)
    with OutputFolder(str(tmp_path / "out")) as folder:
        actors = Actors(ray, options, folder, Resources(engines, 1, 0.0), watcher, Stop())
        return len(actors.do(TASKS).reports)


def test_the_others_go_on_while_no_machine_has_room_for_a_new_actor(tmp_path: Path) -> None:
    told: list[str] = []
    ray = PlayedRay(places={2: None}, parts={1: dies})
    assert do_all(ray, tmp_path, told) == len(TASKS)
    assert [text for text in told if "has died" in text]
    assert ray.started == 3


def test_those_that_are_placed_do_not_wait_for_the_rest(tmp_path: Path) -> None:
    ray = PlayedRay(places={1: None, 2: None})
    assert do_all(ray, tmp_path, [], engines=3) == len(TASKS)


def test_an_actor_that_dies_before_it_has_a_place_is_replaced_and_has_the_cores_that_are_free(tmp_path: Path) -> None:
    ray = PlayedRay(places={1: dies}, parts={0: dies})
    assert do_all(ray, tmp_path, []) == len(TASKS)
    assert ray.started == 4
    assert all(len(cores) == 1 for cores in ray.cores.values())
    assert ray.cores[2] | ray.cores[3] == {(0,), (1,)}


def test_actors_that_never_start_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="an actor cannot be started: the actor has died"):
        do_all(PlayedRay(places=dict.fromkeys(range(9), dies)), tmp_path, [])
