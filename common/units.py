"""Numbers as people write them: 5G of disk, 64K tokens, 2B tokens."""

import re

from .errors import TsconvertError

_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
_FACTORS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}


def parse_count(text: str) -> int:
    """`64K`, `1.5M`, `2B` or `5GB` as a whole number; K is a thousand.

    Raises:
        TsconvertError: it is no such number.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGBT]?)B?", text.strip().upper())
    if not match:
        raise TsconvertError(f"{text!r} is no number; write it like 4096, 64K, 1.5M or 5G")
    return round(float(match[1]) * _FACTORS[match[2]])


def count_text(count: int) -> str:
    """A count as `parse_count` reads it, in the largest of K, M and G that divides it: `64K`."""
    for unit in ("G", "M", "K"):
        if count and count % _FACTORS[unit] == 0:
            return f"{count // _FACTORS[unit]}{unit}"
    return str(count)


def parse_duration(text: str) -> float:
    """`90s`, `10m`, `1.5h` or `1h30m` in seconds.

    Raises:
        TsconvertError: it is no such time, or none at all.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d)", text.strip().lower())
    whole = re.fullmatch(r"(?:\d+(?:\.\d+)?\s*(?:s|min|m|h|d)\s*)+", text.strip().lower())
    time_s = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if not whole or not time_s:
        raise TsconvertError(f"{text!r} is no time; write it like 90s, 10m or 1h30m")
    return time_s


def size_text(size_bytes: float) -> str:
    """A size for people: `14.5 GB`."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:,.1f} {unit}"
    return f"{size_bytes:.0f} bytes"


def duration(time_s: float) -> str:
    """A time for people: `45 s`, `12 min`, `3.5 h`."""
    if time_s < 90:
        return f"{time_s:.0f} s"
    return f"{time_s / 60:.0f} min" if time_s < 5400 else f"{time_s / 3600:.1f} h"
