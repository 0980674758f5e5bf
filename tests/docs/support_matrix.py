"""The support matrix of the documentation: which profile each model has for which GPUs."""

from __future__ import annotations

from collections.abc import Iterable

from rerank_cli.planning.profiles.model_profiles import GB, ModelProfiles, Profile, show_capability


def render_support_matrix(models: Iterable[ModelProfiles]) -> str:
    """The support matrix as a Markdown table, a row for each profile, in the order of the files."""
    rows = ["| model | profile | GPUs | precision | max tokens | chosen |", "| --- | --- | --- | --- | --- | --- |"]
    for found in models:
        for profile in found.profiles:
            chosen = "by default" if profile.kind == "optimized" else "where no optimized profile matches"
            if profile.on_request:
                chosen = f"with `--precision {profile.precision}`"
            cells = (
                f"`{found.model.id}`",
                f"`{profile.name}`",
                _matching_gpus(profile),
                profile.precision,
                f"{profile.max_tokens}",
                chosen,
            )
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _matching_gpus(profile: Profile) -> str:
    if profile.compute_capabilities:
        return "compute capability " + ", ".join(map(show_capability, profile.compute_capabilities))
    if profile.skus:
        return ", ".join(f"`{sku}`" for sku in profile.skus)
    room = "" if profile.min_memory_bytes is None else f" with {profile.min_memory_bytes / GB:g} GB"
    return f"any NVIDIA GPU{room}, alone or together with equal ones"
