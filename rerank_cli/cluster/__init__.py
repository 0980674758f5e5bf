"""A run on several machines: files in, a folder of files out, the parts done by actors of a Ray cluster.

    find_files, cut_tasks        which parts there are                                    tasks
    OutputFolder                 what lies in the folder, and who may write there         folder
    run_on_ray                   from options to manifest                                 ray_run
    Actors                       a cluster checked, actors started, parts given out       actors
    Scorer                       does a part: `run_job` as everywhere                     scorer

Every part is a job with a journal of its own (`commit`), so the same things hold as on one machine: a part that was
interrupted goes on where it was, a bad row is an error row, the bytes do not depend on who did what when. Ray places
the actors and tells when one is gone; it reads and writes no rows. Nothing here imports ray before a run asks for it.
"""

from __future__ import annotations

from rerank_cli.cluster.actors import ClusterOptions
from rerank_cli.cluster.folder import OutputFolder
from rerank_cli.cluster.ray_run import run_on_ray
from rerank_cli.cluster.tasks import Task, cut_tasks, find_files

__all__ = ["ClusterOptions", "OutputFolder", "Task", "cut_tasks", "find_files", "run_on_ray"]
