"""A conversation over several turns, in the words of the model's chat template."""

from dataclasses import dataclass, field
from typing import Any

from .generate import Generation
from .model import Model


@dataclass(kw_only=True)
class Conversation:
    """What was said so far. The model goes on from its cache: of each turn it reads only what is new.

    Example:
        >>> talk = Conversation(model=model, system="Be brief.")  # doctest: +SKIP
        >>> answer = talk.ask("Who are you?", limit=64)
        >>> for piece in answer:
        ...     print(piece.text, end="")
        >>> talk.keep(answer)
    """

    model: Model
    system: str | None = None
    """What the model is told before the first turn."""
    messages: list[dict[str, str]] = field(default_factory=list)
    """Roles and contents, oldest first; `ask` and `keep` add to them."""
    turns: list[Generation] = field(default_factory=list)
    interrupted: bool = False
    """Ended by Ctrl-C."""
    full: bool = False
    """Ended because the next turn does not fit into the context."""
    _held: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.system is not None:
            self.messages.insert(0, {"role": "system", "content": self.system})

    def ask(self, text: str, **options: Any) -> Generation:
        """The model's answer to ``text``, computed when it is iterated over; ``options`` are `Model.generate`'s.

        Raises:
            TsconvertError: the file has no chat template, or it refuses the messages.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        tokens = self.model.tokenizer.chat(messages)
        self.messages = messages
        return self.model.generate(tokens, cached=self._held, **options)

    def keep(self, answer: Generation) -> None:
        """Take an answer, as far as it went, for what was said."""
        self.messages.append({"role": "assistant", "content": answer.text})
        self.turns.append(answer)
        self._held = answer.held

    def end_full(self) -> None:
        """Forget the last question, for which there is no room."""
        self.messages.pop()
        self.full = True

    @property
    def finish(self) -> str:
        """`interrupted`, `context`, or `end`."""
        return "interrupted" if self.interrupted else "context" if self.full else "end"

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"messages": self.messages, "finish": self.finish, "turns": [turn.to_json() for turn in self.turns]}
