"""The Ray cluster: checks before the start, the actors, which actor does which part, and how often a part is tried.

Ray only reserves resources for the actors (`num_cpus`, `num_gpus`). Each part is one call of an actor, and each actor
has one part at a time. A dead actor is replaced here, not by Ray, whose retries have no limit; its part is given out
again and resumes from its journal. A request for more CPUs or GPUs than the cluster has is refused before the start,
because Ray would wait for them for ever.

Ray Data is not used: its readers fail a whole file for one bad line, its writers add to an existing folder, and its
blocks would need a second kind of checkpoint beside the journal.
"""

from __future__ import annotations

import math
import os
import re
import secrets
import signal
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import rerank_cli
from rerank_cli.cluster.folder import OutputFolder
from rerank_cli.cluster.scorer import ActorHost, PartOutcome, Scorer
from rerank_cli.cluster.tasks import Task
from rerank_cli.errors import DoesNotFitError, EngineError, InputError, RerankError, StoppedError, UsageError
from rerank_cli.job.error_limit import ErrorLimit
from rerank_cli.job.options import JobOptions
from rerank_cli.job.run import Watcher
from rerank_cli.job.stop import Stop
from rerank_cli.machine.cpu import usable_cores
from rerank_cli.records import Counts
from rerank_cli.storage import is_url

_CPUS_PER_ENGINE = 4  # of an engine without a GPU
_TRIES = 5  # actors that a part may lose; pairs that kill their process are found earlier (`engine.pool`)
_ANSWER_SECONDS = 4.0
_WAIT_SECONDS = 0.5
_PLACED_SECONDS = 30.0  # until a note says that actors wait for free CPUs


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """Which cluster, and what to use of it. None: decided by what the cluster has."""

    address: str | None = None
    """Of a running cluster; by default that of RAY_ADDRESS, else one is started on this machine for the run."""
    engines: int | None = None
    cpus: int | None = None
    """Of each engine."""
    gpus: float | None = None
    """Of each engine."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What to reserve: the number of engines, with the CPUs and GPUs of each."""

    engines: int
    cpus: int
    gpus: float


@dataclass(frozen=True, slots=True)
class _Actor:
    handle: Any
    place: ActorHost
    seat: int
    """Its number among the actors of its machine, which decides its cores."""


@dataclass(slots=True)
class FinishedParts:
    """The finished parts. reports: by name of the part. errors: of failed parts. counts: sums of the finished ones."""

    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    errors: list[tuple[Task, RerankError]] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)

    def add(self, task: Task, report: dict[str, Any]) -> None:
        """Add a finished part."""
        self.reports[task.name] = report
        self.counts.add(report["counts"])


@contextmanager
def connected(cluster: ClusterOptions) -> Iterator[Any]:
    """The ray module, connected. A cluster that was started for the run is stopped at the end."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    settings: dict[str, Any] = {"address": address or "local", "log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        cores = usable_cores()
        _refuse_too_many(cluster.engines or 1, "CPU", cluster.cpus or 1, cores)  # before the start, which takes seconds
        os.environ.setdefault("RAY_worker_niceness", "0")  # by default Ray gives workers a low priority
        settings |= {"num_cpus": cores, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        if "RAY_AUTH_MODE" not in os.environ:  # a token for this run alone; Ray would keep one in the home folder
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    elif found := re.fullmatch(r"(?:ray://)?(.+):([0-9]{1,5})", address):  # Ray has names of its own, such as `auto`
        try:  # Ray would try a host that does not answer for minutes
            socket.create_connection((found[1], int(found[2])), timeout=_ANSWER_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise _no_cluster_error(address, getattr(error, "strerror", None) or str(error)) from error
    try:
        import ray
    except ImportError as error:
        raise UsageError(
            "--engine ray: Ray is not installed", hint="`pip install 'rerank-cli[ray]'` installs it"
        ) from error
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    # Actors import from the folder that is current during `init`, before any other: make it the one of this package.
    package = Path(rerank_cli.__file__).resolve().parents[1]
    try:
        with chdir(package):
            ray.init(**settings)
        _set_handlers(handlers)  # Ray has replaced them
    except SystemExit:  # of Ray's handler: a signal came before ours was back
        _set_handlers(handlers)
        signal.raise_signal(signal.SIGTERM)
        raise
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _no_cluster_error(address or "local", str(error).partition("\n")[0]) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _set_handlers(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def resources_for(there: Mapping[str, float], options: JobOptions, cluster: ClusterOptions) -> Resources:
    """What to reserve; `DoesNotFitError` if the cluster has less. there: what the whole cluster has."""
    all_cpus, all_gpus = there.get("CPU", 0.0), there.get("GPU", 0.0)
    on_cpu = options.request.device == "cpu" or (options.request.device == "auto" and not all_gpus)
    gpus = cluster.gpus if cluster.gpus is not None else 0.0 if on_cpu else 1.0
    cpus = cluster.cpus or (1 if gpus else min(_CPUS_PER_ENGINE, max(1, int(all_cpus))))
    engines = cluster.engines or max(1, int(min(all_cpus // cpus, all_gpus // gpus if gpus else all_cpus)))
    _refuse_too_many(engines, "CPU", cpus, all_cpus)
    _refuse_too_many(engines, "GPU", gpus, all_gpus)
    return Resources(engines, cpus, gpus)


def _refuse_too_many(engines: int, what: str, each: float, total: float) -> None:
    if engines * each > total:
        raise DoesNotFitError(
            f"--engine ray: {engines} engine{'s' * (engines > 1)} of {each:g} {what}{'s' * (each != 1)} "
            f"need{'s' * (engines == 1)} {engines * each:g}, and the cluster has {total:g}",
            hint=f"ask for less with `--engines` or `--{what.lower()}s-per-engine`",
        )


def _no_cluster_error(address: str, reason: str) -> InputError:
    return InputError(
        f"--ray-address {address}: no Ray cluster answers: {reason}",
        hint="`ray status --address ADDRESS` shows a running one",
    )


def _with_absolute_paths(options: JobOptions) -> JobOptions:
    """`options` with absolute paths, for processes in another folder."""

    def whole(path: str | None) -> str | None:
        return path if path is None or is_url(path) else str(Path(path).expanduser().absolute())

    is_folder = options.model is not None and not is_url(options.model) and Path(options.model).expanduser().is_dir()
    return replace(
        options,
        model=whole(options.model) if is_folder else options.model,
        profiles_file=whole(options.profiles_file),
        store=whole(options.store),
        qrels=whole(options.qrels),
        texts=replace(options.texts, queries=whole(options.texts.queries), corpus=whole(options.texts.corpus)),
        fields=replace(options.fields, image_root=whole(options.fields.image_root)),
    )


class Actors:
    """The actors, and their parts."""

    def __init__(
        self, ray: Any, options: JobOptions, folder: OutputFolder, resources: Resources, watcher: Watcher, stop: Stop
    ) -> None:
        self._ray = ray
        self._options = _with_absolute_paths(options)
        self._folder = folder
        self._resources = resources
        self._watcher = watcher
        self._stop = stop
        self._class = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_restarts=0, max_task_retries=0)(
            Scorer
        )
        self._handles: list[Any] = []
        self._coming: dict[Any, Any] = {}  # actors that Ray has not placed yet, by the reference to their place
        self._not_placed = 0  # actors that have died before they had a place, since the last one that got one
        self._coming_since = math.inf  # until it is told
        self._seats: set[tuple[str, int]] = set()  # that are taken: machine and number
        self._said: set[str] = set()
        self._finished = FinishedParts()
        self._parts = 0

    def do(self, tasks: Sequence[Task]) -> FinishedParts:
        """Do all tasks. If some fail, the first error is raised when the others are done."""
        try:
            self._parts = len(tasks)
            self._watcher.progress.submit(0, None)
            self._work_off(tasks)
        finally:
            for handle in self._handles:
                with suppress(self._ray.exceptions.RayError):
                    self._ray.kill(handle)
        if self._finished.errors:
            task, error = self._finished.errors[0]
            error.add_note(
                f"{len(self._finished.reports)} of {len(tasks)} parts are finished and kept; {task.name} failed"
            )
            raise error
        return self._finished

    def _work_off(self, tasks: Sequence[Task]) -> None:
        waiting = deque(tasks)
        idle: deque[_Actor] = deque()
        working: dict[Any, tuple[_Actor, Task]] = {}
        lost: Counter[str] = Counter()
        for _ in range(min(self._resources.engines, len(tasks))):
            self._start_actor()
        while waiting or working:
            while waiting and idle:
                actor, task = idle.popleft(), waiting.popleft()
                working[self._begin(actor, task)] = (actor, task)
            ready, _ = self._ray.wait([*self._coming, *working], timeout=_WAIT_SECONDS)
            self._stop.check()
            self._folder.check()
            self._tell_of_missing()
            for reference in ready:
                if reference in self._coming:
                    idle += self._see_place(reference)
                    continue
                actor, task = working.pop(reference)
                done: PartOutcome | None
                try:
                    done = self._ray.get(reference)
                except self._ray.exceptions.RayTaskError:
                    raise  # a bug of this program
                except self._ray.exceptions.RayError:
                    done = None  # the actor has died
                if done is not None and not isinstance(done.error, StoppedError):
                    self._finish(task, done)
                    idle.append(actor)
                    continue
                lost[task.name] += 1
                if lost[task.name] == _TRIES:
                    raise EngineError(
                        f"{task.name}: {_TRIES} actors have died while they did this part",
                        hint="find out why, and run the same command again: what is finished is kept",
                    )
                self._say(f"the actor on {actor.place.host} has died; another one resumes {task.name}")
                waiting.appendleft(task)
                self._seats.discard((actor.place.node, actor.seat))
                self._start_actor()  # the others go on while it is placed, which takes for ever if its machine is gone

    def _start_actor(self) -> None:
        if not self._coming:
            self._coming_since = time.monotonic()
        handle = self._class.remote()
        self._handles.append(handle)
        texts = self._options.texts
        shared = (str(self._folder.path), *self._options.inputs, texts.queries, texts.corpus, self._options.qrels)
        paths = [str(Path(path).absolute()) for path in dict.fromkeys(shared) if path and not is_url(path)]
        self._coming[handle.place.remote(paths)] = handle

    def _see_place(self, reference: Any) -> list[_Actor]:
        """The actor that Ray has placed; if it has died, another one is started."""
        handle = self._coming.pop(reference)
        try:
            place: ActorHost = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._not_placed += 1
            if self._not_placed < _TRIES:
                self._start_actor()
                return []
            raise EngineError(
                f"--engine ray: an actor cannot be started: {str(error).strip().splitlines()[-1]}",
                hint="install rerank-cli on every machine of the cluster, in the Python that Ray runs",
            ) from error
        self._not_placed = 0
        if place.version != rerank_cli.__version__:
            raise EngineError(
                f"--engine ray: {place.host} has rerank-cli {place.version}, this is {rerank_cli.__version__}",
                hint="install the same version everywhere",
            )
        if place.missing:
            raise InputError(
                f"{place.missing[0]}: does not exist on {place.host}",
                hint="put inputs and output on a file system that all machines share, or in an object store",
            )
        seat = next(number for number in count() if (place.node, number) not in self._seats)
        self._seats.add((place.node, seat))
        return [_Actor(handle, place, seat)]

    def _tell_of_missing(self) -> None:
        if self._coming and time.monotonic() - self._coming_since > _PLACED_SECONDS:
            free, missing = self._ray.available_resources(), len(self._coming)
            engines = f"{missing} engine{'s' * (missing > 1)}"
            self._say(f"waiting for the cluster: {engines} to place, {free.get('CPU', 0):g} CPUs free")
            self._coming_since = math.inf

    def _cores_of(self, actor: _Actor) -> tuple[int, ...]:
        """The cores of an actor: those of its machine are divided among its actors. Empty means all of them."""
        number, cores = self._resources.cpus, actor.place.cores
        if self._resources.gpus or number >= len(cores):
            return ()
        return tuple(cores[at % len(cores)] for at in range(actor.seat * number, (actor.seat + 1) * number))

    def _begin(self, actor: _Actor, task: Task) -> Any:
        shard = (task.shard, task.shards) if task.shards > 1 else None
        options = replace(
            self._options,
            inputs=(task.input,),
            names=self._folder.names(task, self._options.names.out_format, judged=self._options.qrels is not None),
            shard=shard,
            limit=task.limit,
            lock_wait=self._folder.lock_wait_of_parts,
            request=replace(self._options.request, engine_count=1),
            error_limit=ErrorLimit(all=True),  # `_finish` checks the limit for all parts together
            overwrite=False,
            restart=False,
            deadline=None,
        )
        return actor.handle.do.remote(options, self._cores_of(actor))

    def _finish(self, task: Task, done: PartOutcome) -> None:
        for note in done.notes:
            self._say(note if note.startswith("warning: ") else f"{task.name}: {note}")
        if done.error is not None:
            self._finished.errors.append((task, done.error))
            return
        assert done.report is not None, "a part without an error has a report"
        self._finished.add(task, done.report)
        counts = self._finished.counts
        self._watcher.progress.end_part(counts.pairs, len(self._finished.reports) / max(1, self._parts), counts.rows_in)
        self._options.error_limit.check(counts, last=False)
        if self._watcher.on_progress:
            self._watcher.on_progress(counts, None)

    def _say(self, text: str) -> None:
        if self._watcher.on_note and text not in self._said:
            self._watcher.on_note(text)
        self._said.add(text)
