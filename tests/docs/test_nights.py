"""The recipes of docs/guides through a week of nights: the last good output stays, and what is said is true."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import TINY_CHECKPOINT

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "docs" / "guides"
FIELD = ROOT / "tests" / "data" / "field"
CRON = (GUIDES / "pipes-and-cron.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
SLURM = (GUIDES / "many-machines.md").read_text(encoding="utf-8")
FETCH = "zcat -f samples/python-docs.jsonl > lists.jsonl"


def _rows(first: int, count: int, bad: int = 0) -> bytes:
    numbers = range(first, first + count)
    passages = ["two roads", "a wood"]
    rows: list[object] = [{"query_id": n, "query": f"road {n}", "passages": passages} for n in numbers]
    rows += [{"query": "q", "passages": "x"}] * bad
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _array(first: int) -> bytes:
    return json.dumps([json.loads(line) for line in _rows(first, 3).splitlines()], indent=2).encode()


@dataclass(frozen=True)
class Night:
    """What comes in, whether the output is new in the morning, and what the script says.

    breaks_off: the fetching ends badly. late: the deadline strikes. errors: how many bad rows the errors file has then.
    """

    name: str
    content: bytes
    is_new: bool
    says: str = ""
    breaks_off: bool = False
    late: bool = False
    errors: int = 0


KEPT = "; nightly.jsonl was not touched"
WEEK = (
    Night("good", _rows(0, 3), True),
    Night("an HTML page", (FIELD / "s22_html_error.jsonl").read_bytes(), False, f"cannot be read{KEPT}"),
    Night("nothing", b"", False, f"the input has no rows, or cannot be read{KEPT}"),
    Night("a JSON array", _array(10), True),
    Night("a pipe that fails", _rows(20, 3), False, f"the lists could not be fetched{KEPT}", breaks_off=True),
    Night(
        "a few bad rows", _rows(25, 30, bad=2), True, "some rows are in nightly.jsonl.errors.jsonl instead", errors=2
    ),
    Night("too many bad rows", _rows(30, 3, bad=30), False, f"too many bad rows{KEPT}", errors=2),
    Night("no time", _rows(33, 3), False, f"not complete yet, the next run continues{KEPT}", late=True, errors=2),
    Night("the rest of it", _rows(33, 3), True),
    Night("not one good row", _rows(0, 0, bad=3), False, f"too many bad rows{KEPT}"),
    Night("good again", _rows(40, 3), True),
)


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", CRON, re.DOTALL | re.MULTILINE)


def _script() -> str:
    (script,) = [block for block in _blocks("sh") if FETCH in block]
    return script.replace(FETCH, "sh fetch > lists.jsonl")


def _service() -> str:
    (unit,) = [block for block in _blocks("ini") if "ExecStart" in block]
    settings = dict(re.findall(r"^(\w+)=(.*)$", unit, re.MULTILINE))
    command = settings["ExecStart"].replace("/usr/local/bin/", "").replace("lists.parquet", "lists.jsonl")
    command = command.replace("ranked.parquet", "nightly.jsonl")
    fine = settings["SuccessExitStatus"].replace(" ", "|")
    return f"sh fetch > lists.jsonl || exit 1\n{command} --max-errors 10% || case $? in {fine}) ;; *) exit 1 ;; esac"


def _crontab() -> str:
    """README's line, with a deadline for the night that has no time."""
    (command,) = re.findall(r"^0 1 \* \* \*  cd /srv/rerank && /usr/local/bin/(.*)$", README, re.MULTILINE)
    command = command.replace("ranked.jsonl", "nightly.jsonl")
    return f"sh fetch > lists.jsonl || exit 1\n{command} --deadline 5h || case $? in 3|9) ;; *) exit 1 ;; esac"


def _task() -> str:
    (script,) = re.findall(r"^```bash\n(#!/bin/bash\n#SBATCH.*?)^```", SLURM, re.DOTALL | re.MULTILINE)
    assert "samples/nim.jsonl" in script
    script = script.replace("samples/nim.jsonl", "lists.jsonl")
    script = script.replace("part-$SLURM_ARRAY_TASK_ID.jsonl", "nightly.jsonl")
    script = script.replace("-q --deadline", "-q --overwrite --max-errors 10% --deadline")
    task = "export SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=1 SLURM_ARRAY_TASK_COUNT=1"
    return f"{task}\nsh fetch > lists.jsonl || exit 1\n{script}"


@pytest.mark.parametrize("recipe", [_script, _crontab, _service, _task])
def test_a_week_of_nights_leaves_the_last_good_output(recipe: object, tmp_path: Path, served: Path) -> None:
    script = recipe()
    path = f"{served}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "RERANK_MODEL": str(TINY_CHECKPOINT), "OMP_NUM_THREADS": "1"}
    out, errors = tmp_path / "nightly.jsonl", tmp_path / "nightly.jsonl.errors.jsonl"
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\necho requeued\n")
    scontrol.chmod(0o755)
    environment["PATH"] = f"{tmp_path}{os.pathsep}{environment['PATH']}"
    before = b""
    for night in WEEK:
        (tmp_path / "incoming").write_bytes(night.content)
        (tmp_path / "fetch").write_text(f"cat incoming\nexit {int(night.breaks_off)}\n")
        tonight = script.replace("--deadline 5h", "--deadline 0.001s") if night.late else script
        done = subprocess.run(
            ["bash", "-c", tonight], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        said = f"{night.name}: {done.stdout}{done.stderr}"
        after = out.read_bytes()
        assert "Traceback" not in done.stderr, said
        assert (after != before) == night.is_new, said
        assert (done.returncode == 0) == (night.is_new or night.late), said
        assert (len(errors.read_bytes().splitlines()) if errors.exists() else 0) == night.errors, said
        if night.is_new:
            assert [json.loads(line)["query_id"] for line in after.splitlines()] == _ids(night.content)
        if recipe is _script:
            assert night.says in done.stdout, said
            assert bool(done.stdout) == bool(night.says), said
        elif recipe is _task and night.late:
            assert done.stdout == "requeued\n"
        before = after


def _ids(content: bytes) -> list[int]:
    rows = json.loads(content) if content.startswith(b"[") else [json.loads(line) for line in content.splitlines()]
    return [row["query_id"] for row in rows if "query_id" in row]
