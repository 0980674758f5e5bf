"""A run on several machines: files in, a folder of files out, the parts done by actors of a Ray cluster.

    tasks.py       `find_files`, `cut_tasks`: which parts there are
    folder.py      `OutputFolder`: what lies in the folder, and who may write there
    ray_run.py     `run_on_ray`: from options to manifest
    actors.py      `Actors`: check the cluster, start actors, give them parts
    scorer.py      `Scorer`: the actor; it does a part with `run_job`, as on one machine

Each part is a job with a journal of its own, so the promises are those of one machine: an interrupted part is resumed,
a bad row becomes an error row, and the bytes do not depend on which actor did what. Ray places the actors and reports
dead ones; it reads and writes no rows. Ray is imported only when a run asks for it.
"""

from __future__ import annotations

from rerank_cli.cluster.actors import ClusterOptions
from rerank_cli.cluster.folder import OutputFolder
from rerank_cli.cluster.ray_run import run_on_ray
from rerank_cli.cluster.tasks import Task, cut_tasks, find_files

__all__ = ["ClusterOptions", "OutputFolder", "Task", "cut_tasks", "find_files", "run_on_ray"]
