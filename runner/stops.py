"""Text that ends before a stop string, though the string comes in pieces."""

from collections.abc import Sequence


class StopStrings:
    """Passes text on, up to the first of some strings; what may be the beginning of one is held back.

    Attributes:
        found: the string that ended the text, None so far.

    Example:
        >>> stops = StopStrings(["###"])
        >>> stops.push("a #"), stops.push("# b"), stops.push("###c"), stops.found
        ('a ', '## b', '', '###')
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self.found: str | None = None
        self._strings = [string for string in strings if string]
        self._held = ""

    def push(self, text: str) -> str:
        """Take in more text; returns what can be shown of all so far and was not."""
        if self.found is not None:
            return ""
        self._held += text
        places = [(self._held.find(string), -len(string), string) for string in self._strings if string in self._held]
        if places:
            at, _, self.found = min(places)
            return self._let(at)
        return self._let(len(self._held) - max(map(self._begun, self._strings), default=0))

    def flush(self) -> str:
        """What was held back, now that no more text comes."""
        return "" if self.found is not None else self._let(len(self._held))

    def _begun(self, string: str) -> int:
        """Length of the longest end of the text that ``string`` begins with."""
        most = min(len(string) - 1, len(self._held))
        return next((size for size in range(most, 0, -1) if self._held.endswith(string[:size])), 0)

    def _let(self, size: int) -> str:
        shown, self._held = self._held[:size], self._held[size:]
        return shown
