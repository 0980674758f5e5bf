"""Numbers with their units, as people read them."""

from __future__ import annotations

NARROW = "\N{NO-BREAK SPACE}"


def number(value: float, *, digits: int = 0) -> str:
    """`12,345`, with a true minus sign."""
    return f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def plural(count: int, one: str, many: str | None = None) -> str:
    """`1 row`, `2 rows`."""
    return f"{number(count)}{NARROW}{one if count == 1 else many or one + 's'}"


def signed(value: float) -> str:
    """A change, in four decimals."""
    return ("+" if value >= 0 else "\N{MINUS SIGN}") + f"{abs(value):.4f}"


def short(value: float) -> str:
    """At most four significant digits, for axes and scores."""
    if value and (abs(value) >= 1e6 or abs(value) < 1e-4):
        return f"{value:.2e}".replace("-", "\N{MINUS SIGN}")
    if value == int(value):
        return number(value)
    digits = max(0, 3 - len(str(int(abs(value)))))
    return number(value, digits=3 if abs(value) < 1 else digits)


def percent(share: float) -> str:
    """A share in percent; never rounds a non-zero share to 0 %, nor one below 1 to 100 %."""
    if 0 < share < 0.001:
        return f"<{NARROW}0.1{NARROW}%"
    if 0.999 < share < 1:
        return f">{NARROW}99.9{NARROW}%"
    return f"{100 * share:.1f}".removesuffix(".0") + f"{NARROW}%"


def duration(seconds: float) -> str:
    """`0.42 s`, `8.1 s`, `2 min 16 s`, `3 h 5 min`."""
    if seconds < 0.001:
        return f"<{NARROW}0.001{NARROW}s" if seconds else f"0{NARROW}s"
    if seconds < 59.95:
        return f"{seconds:.{1 if seconds >= 1 else 2 if seconds >= 0.01 else 3}f}{NARROW}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes}{NARROW}min {rest}{NARROW}s"
    days, hours = divmod(hours, 24)
    return f"{days}{NARROW}d {hours}{NARROW}h" if days else f"{hours}{NARROW}h {minutes}{NARROW}min"


def size(count: float) -> str:
    """Bytes as `1.2 GiB`."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:,.{2 if count < 10 * scale else 1}f}{NARROW}{unit}"
    return f"{count:,.0f}{NARROW}bytes"


def rate(per_second: float, unit: str) -> str:
    """`488 tokens/s`."""
    return f"{number(per_second, digits=0 if per_second >= 100 else 1)}{NARROW}{unit}/s"


def p_value(value: float) -> str:
    """`0.0002`, `< 0.0001`."""
    return f"<{NARROW}0.0001" if value < 0.0001 else f"{value:.4f}"
