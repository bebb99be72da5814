"""The parts of a plot as SVG text: elements, scales with round ticks, axes. Colours are the page's CSS variables."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, WIDE = 540, 250, 1060
"""Pixels of a plot in one of two columns, and the width of one across both."""
LEFT, RIGHT, TOP, BOTTOM = 48, 20, 26, 40
FLOOR = HEIGHT - BOTTOM
Format = Callable[[float], str]


def tag(name: str, content: str = "", **attributes: object) -> str:
    """One element; `_` in an attribute's name stands for `-`, a trailing one is dropped, None leaves it out."""
    text = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_shortened(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{text}>{content}</{name}>" if content else f"<{name}{text}/>"


def _shortened(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def tip(text: str) -> str:
    """What shows when the pointer rests on an element."""
    return f"<title>{escape(text)}</title>"


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A line of the CSS class ``kind``."""
    return tag("line", x1=x1, x2=x2, y1=y1, y2=y2, class_=kind)


def text(x: float, y: float, content: str, kind: str) -> str:
    """Text of the CSS class ``kind``, its baseline at ``y``."""
    return tag("text", escape(content), x=x, y=y, class_=kind)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """From values to pixels along one axis."""

    low: float
    high: float
    start: float
    """Pixel of ``low``."""
    end: float
    """Pixel of ``high``."""
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values within the scale: multiples of 1, 2 or 5 times a power of ten."""
        low, high = self.low, self.high
        if self.log:
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            factors = (1, 2, 5) if len(powers) <= 3 else (1,)
            return [10.0**p * f for p in powers for f in factors if low * 0.999 <= 10.0**p * f <= high * 1.001]
        rough = (high - low) / max(1, most - 1)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
        return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


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
    """A measured figure with the digits that it deserves: 68.0, 3.14, 99,877."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def axis_y(y: Scale, form: Format, title: str, width: float = WIDTH) -> str:
    """Grid lines with their values, and what they measure."""
    parts = [
        line(LEFT, y(value), width - RIGHT, y(value), "grid") + text(LEFT - 7, y(value) + 4.0, form(value), "tick end")
        for value in y.ticks()
    ]
    return "".join([*parts, text(0, 10, title, "tick")])


def axis_x(x: Scale, form: Format, title: str) -> str:
    """Values below the plot, and what they measure."""
    ticks = [
        line(x(value), FLOOR, x(value), FLOOR + 4, "base") + text(x(value), FLOOR + 17, form(value), "tick mid")
        for value in x.ticks(8)
    ]
    return floor_line() + "".join(ticks) + axis_title(title)


def floor_line(width: float = WIDTH) -> str:
    """The horizontal axis."""
    return line(LEFT, FLOOR, width - RIGHT, FLOOR, "base")


def axis_title(title: str, width: float = WIDTH, floor: float = FLOOR) -> str:
    """What the horizontal axis shows, below it."""
    return text((LEFT + width - RIGHT) / 2, floor + 34, title, "axis")


def drawing(label: str, *parts: str, width: float = WIDTH, height: float = HEIGHT) -> str:
    """The whole plot; ``label`` is what a screen reader says."""
    return tag(
        "svg", "".join(parts), viewBox=f"0 0 {width:.0f} {height:.0f}", role="img", aria_label=label, class_="plot"
    )


def blend(share: float) -> str:
    """A colour between the page's first and last, for things in an order."""
    return f"color-mix(in oklab, var(--late) {100 * share:.0f}%, var(--early))"
