"""The parts of a plot, as SVG text: scales with round ticks, axes, marks. Colours are the page's CSS variables."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, WIDE = 540, 250, 1060
"""Of a plot in one of two columns; of one across both."""
LEFT, RIGHT, TOP, BOTTOM = 48, 20, 26, 40
Format = Callable[[float], str]


def tag(name: str, content: str = "", **attributes: object) -> str:
    """One element; `_` in an attribute's name stands for `-`, a trailing one is dropped."""
    text = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{text}>{content}</{name}>" if content else f"<{name}{text}/>"


def _short(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def tip(text: str) -> str:
    """What shows when the pointer rests on a mark."""
    return f"<title>{escape(text)}</title>"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """From values to pixels along one axis."""

    low: float
    high: float
    start: float
    end: float
    """Pixels of ``low`` and ``high``."""
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values within the scale."""
        return _decades(self.low, self.high) if self.log else steps(self.low, self.high, most)


def steps(low: float, high: float, most: int = 6) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from ``low`` to ``high``."""
    rough = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 3 else (1,)
    return [10.0**p * f for p in powers for f in factors if low * 0.999 <= 10.0**p * f <= high * 1.001]


def scale(values: Sequence[float], start: float, end: float, *, log: bool = False, zero: bool = True) -> Scale:
    """A scale that holds ``values``, with some air above them; linear ones start at 0 unless ``zero`` is off."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if log:
        low = max(low, 1e-9)
        spread = max(math.log10(max(high, low) / low), 0.3)
        return Scale(low=low / 10 ** (0.06 * spread), high=low * 10 ** (1.08 * spread), start=start, end=end, log=True)
    span = (high - (0 if zero else low)) or 1.0
    return Scale(low=0.0 if zero else low - 0.08 * span, high=high + 0.06 * span, start=start, end=end)


def percent(value: float) -> str:
    """A share for people: 12 %, 3.4 %, 0.02 %."""
    value *= 100
    if value == 0 or abs(value) >= 9.95 or (abs(value) >= 1 and abs(value - round(value)) < 1e-9):
        return f"{value:.0f} %"
    return f"{value:.1f} %" if abs(value) >= 0.95 else f"{value:.1g} %"


def number(value: float) -> str:
    """A number for people: 1,234, 12.3, 0.00012."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-4 else f"{value:.0e}".replace("e-0", "e-")


def measured(value: float) -> str:
    """A figure that was measured, with the digits that it deserves: 68.0, 3.14, 99,877."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def axis_y(y: Scale, form: Format, title: str, width: float = WIDTH) -> str:
    """Grid lines with their values, and what they measure."""
    parts = []
    for value in y.ticks():
        at = y(value)
        parts.append(tag("line", x1=LEFT, x2=width - RIGHT, y1=at, y2=at, class_="grid"))
        parts.append(tag("text", escape(form(value)), x=LEFT - 7, y=at + 4.0, class_="tick end"))
    parts.append(tag("text", escape(title), x=0, y=10, class_="tick"))
    return "".join(parts)


def axis_x(x: Scale, form: Format, title: str) -> str:
    """Values below the plot, and what they measure."""
    bottom = HEIGHT - BOTTOM
    parts = [tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom, class_="base")]
    for value in x.ticks(8):
        parts.append(tag("line", x1=x(value), x2=x(value), y1=bottom, y2=bottom + 4, class_="base"))
        parts.append(tag("text", escape(form(value)), x=x(value), y=bottom + 17, class_="tick mid"))
    parts.append(tag("text", escape(title), x=(LEFT + WIDTH - RIGHT) / 2, y=bottom + 34, class_="axis"))
    return "".join(parts)


def drawing(label: str, *parts: str, width: float = WIDTH, height: float = HEIGHT) -> str:
    """The whole, with what a screen reader says."""
    return tag(
        "svg", "".join(parts), viewBox=f"0 0 {width:.0f} {height:.0f}", role="img", aria_label=label, class_="plot"
    )


def blend(share: float) -> str:
    """A colour between the page's first and last, for things in an order."""
    return f"color-mix(in oklab, var(--late) {100 * share:.0f}%, var(--early))"
