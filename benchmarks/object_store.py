"""What an object store costs a run: the same file scored from and to a disk, and from and to S3 at 20 ms a call.

    python -m benchmarks.object_store [--pairs 20000] [--rounds 3] [--latency 0.02]

The server is moto's, in a process of its own; a proxy on loopback keeps each call back. The rounds take turns, and the
quotient is of the medians of the processes' times, from start to end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency", type=float, default=0.02)
    parser.add_argument("--model", default=None, help="default: the built-in model")
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from tests.fault_proxy import fault_proxy
    from tests.stores import new_bucket, s3_server

    with tempfile.TemporaryDirectory() as folder, s3_server() as server:  # noqa: SIM117 (the proxy needs the server)
        with fault_proxy(server, latency=given.latency) as proxy:
            bucket = new_bucket(server)
            source = Path(folder, "in.jsonl")
            with source.open("w") as out:
                for number in range(given.pairs // 20):
                    passages = [f"passage {place} of the list {number}, of a few words more" for place in range(20)]
                    out.write(json.dumps({"query": f"what is in {number}", "passages": passages}) + "\n")
            bucket.put("in.jsonl", source.read_bytes())
            variables = {**os.environ, **bucket.variables, "AWS_ENDPOINT_URL": proxy.endpoint, "XDG_CACHE_HOME": folder}
            seconds: dict[str, list[float]] = {"disk": [], "store": []}  # of the process, from start to end
            scoring: dict[str, list[float]] = {"disk": [], "store": []}
            for number in range(given.rounds):
                for place, where in (("disk", folder), ("store", bucket.url("")[:-1])):
                    out, report = f"{where}/out-{number}.jsonl", Path(folder, f"{place}-{number}.json")
                    model = ["--model", given.model] if given.model else []
                    command = [sys.executable, "-m", "rerank_cli", "rerank-file", f"{where}/in.jsonl", "-o", out, "-q"]
                    began = time.monotonic()
                    subprocess.run([*command, "--report", str(report), *model], env=variables, cwd=ROOT, check=True)
                    seconds[place].append(round(time.monotonic() - began, 2))
                    scoring[place].append(json.loads(report.read_bytes())["seconds"]["wall"])
                assert bucket.get(f"out-{number}.jsonl") == Path(folder, f"out-{number}.jsonl").read_bytes()
            disk, store = (statistics.median(seconds[place]) for place in ("disk", "store"))
            print(f"disk {disk:.2f} s, store {store:.2f} s at {given.latency * 1000:g} ms a call: {store / disk:.3f}")
            print(f"processes: {seconds}; scoring: {scoring}; calls: {dict(proxy.calls)}")


if __name__ == "__main__":
    main()
