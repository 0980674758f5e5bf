"""The figures of `results/*.json` as tables in Markdown, as `RESULTS.md` has them.

python -m benchmarks.tables [FILE ...]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
OURS = "rerank-cli"
DEFAULT, BEST = "fp32, batch 32", "fp32, best batch"
"""How the names of the two sides end that others are compared with: at the default batch size, and at the best one."""

Result = Mapping[str, Any]


def main() -> None:
    """Print the tables of files, all by default."""
    for file in [Path(name) for name in sys.argv[1:]] or sorted(RESULTS.glob("*.json")):
        print(f"{file.name}\n\n" + "\n".join(table(read(file))) + "\n")


def read(file: Path) -> Result:
    """A file of figures."""
    result: Result = json.loads(file.read_text(encoding="utf-8"))
    return result


def table(result: Result) -> list[str]:
    """The lines of a result's tables."""
    return {"speed": _speed, "growth": _growth, "startup": _startup}[result["question"]](result)


def _speed(result: Result) -> list[str]:
    measured = [side for side in result["sides"] if "failure" not in side]
    failures = [f"- {side['name']}: {side['failure']}" for side in result["sides"] if "failure" in side]
    lines = [*_speeds(measured), "", *_costs(measured)]
    ceilings = ", ".join(f"{name} {value:,.0f}" for name, value in result["gflops_of_products"].items())
    lines += ["", f"Products of matrices on the spot, Gop/s: {ceilings}.", "", "Versions:", ""]
    lines += [f"- {versions}" for versions in dict.fromkeys(side["version"] for side in measured)]
    return lines + (["", "Not measured:", "", *failures] if failures else [])


def _speeds(sides: Sequence[Result]) -> list[str]:
    ours = [side["name"] for side in sides if side["name"].startswith(OURS)]
    bases = [side for side in sides if side["name"].endswith((DEFAULT, BEST))][:2]
    heads = [
        "",
        "pairs/s",
        "tokens/s",
        *(f"times {base['name']}" for base in bases),
        *(f"{name} against it" for name in ours),
    ]
    return _lines(
        heads,
        [
            [
                _name(side),
                _spread(side["pairs_per_second"], "{:.2f}"),
                f"{side['tokens_per_second']:,}",
                *(f"{_median(side) / _median(base):.2f}x" for base in bases),
                *("" if name == side["name"] else _times(side["ours_is"][name]) for name in ours),
            ]
            for side in sides
        ],
    )


def _costs(sides: Sequence[Result]) -> list[str]:
    heads = ["", "start, s", "peak RSS, MiB", "padding", "utilisation", "max logit difference", "top-10 overlap"]
    return _lines(
        heads,
        [
            [
                _name(side),
                f"{side['start_seconds']['median']:.1f}",
                f"{side['peak_rss_mib']:,}",
                f"{side['padding']:.0%}",
                f"{side['utilisation']:.0%}",
                f"{side['max_logit_difference']:.0e}" if "max_logit_difference" in side else "",
                f"{side['top10_overlap']:.3f}" if "top10_overlap" in side else "",
            ]
            for side in sides
        ],
    )


def _name(side: Result) -> str:
    return side["name"] + (f" ({side['batch_size']})" if side["name"].endswith("best batch") else "")


def _median(side: Result) -> float:
    value: float = side["pairs_per_second"]["median"]
    return value


def _spread(values: Result, shown: str) -> str:
    return f"{shown} [{shown}..{shown}]".format(values["median"], values["least"], values["most"])


def _times(values: Result) -> str:
    return f"{values['median']:.2f}x"


def _growth(result: Result) -> list[str]:
    heads = ["", "", "pairs", "tokens", "CPU-s a million tokens", "tokens/s", "peak RSS, MiB"]
    return _lines(
        [*heads, "attention's share of operations", "utilisation"],
        [
            [
                at["section"],
                f"{at['value']:,}",
                f"{at['pairs']:,}",
                f"{at['tokens']:,}",
                f"{at['cpu_seconds_per_million']:,}",
                f"{at['tokens_per_second']:,}",
                f"{at['peak_rss_mib']:,}",
                f"{at['attention_share']:.0%}" if "attention_share" in at else "",
                f"{at['utilisation']:.0%}" if "utilisation" in at else "",
            ]
            for at in result["points"]
        ],
    )


def _startup(result: Result) -> list[str]:
    heads = [
        "one pair, whole process",
        "CPU seconds" if result["clock"] == "cpu" else "seconds",
        "times sentence-transformers",
    ]
    sides = result["sides"]
    return _lines(heads, [[at["name"], _spread(at["seconds"], "{:.2f}"), _times(at["times"])] for at in sides])


def _lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]


if __name__ == "__main__":
    main()
