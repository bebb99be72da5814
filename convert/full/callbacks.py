"""Progress of full recovery on stderr, in place of what transformers prints on stdout."""

import time
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from ...common.progress import note

if TYPE_CHECKING:
    from .trainer import RecoveryTrainer

_EVERY_S = 20.0


class Progress(TrainerCallback):
    """A line now and then, and one for each look at the held-out text; keeps the training's speed."""

    def __init__(self, trainer: "RecoveryTrainer") -> None:
        self.trainer = trainer
        self.start_s = self.said_s = self.began_s = time.monotonic()
        self.steps, self.steps_s = 0, 0.0

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second, over all processes, evaluations and checkpoints left out."""
        return self.steps * self.trainer.how.batch_tokens / max(self.steps_s, 1e-9)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called before a step's first micro-batch."""
        del args, state, control
        self.began_s = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called after each step."""
        del args, state, control
        self.steps, self.steps_s = self.steps + 1, self.steps_s + time.monotonic() - self.began_s

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Called with the trainer's figures."""
        del args, control
        logs = logs or {}
        now = time.monotonic()
        where = f"step {state.global_step}/{state.max_steps}, {now - self.start_s:.0f} s"
        if "eval_perplexity" in logs:
            masked = logs.get("eval_predicted_perplexity")
            mask = "" if masked is None else f" ({masked:.2f} under the predictors' mask)"
            note(
                f"{where}: held-out perplexity {logs['eval_perplexity']:.2f}{mask}, density {logs['eval_density']:.3f}"
            )
        elif "loss" in logs and now - self.said_s > _EVERY_S:
            parts = ("cross_entropy", "divergence", "hidden", "density", "penalty_weight")
            said = ", ".join(f"{name} {logs[name]:.4g}" for name in parts if name in logs)
            note(f"{where}: {said}, {self.tokens_per_s:,.0f} tokens/s")
            self.said_s = now
