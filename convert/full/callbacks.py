"""Progress of full recovery on stderr, in place of what transformers prints on stdout; and its end by the clock."""

import math
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


class TimeLimit(TrainerCallback):
    """Ends the training in time; learning rate and density go down by the steps that there will be, not the planned.

    Args:
        trainer: is told the steps that there will be.
        ends_s: when training and its last looks at the held-out text are to be over, on the monotonic clock.
    """

    def __init__(self, trainer: "RecoveryTrainer", ends_s: float) -> None:
        self.trainer, self.ends_s = trainer, ends_s
        self.first, self.began_s, self.ended_s = 0, time.monotonic(), 0.0
        self.look_s = 0.0
        """The longest that an evaluation and its checkpoint took."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called before the first step."""
        del args, control
        self.first, self.began_s = state.global_step, time.monotonic()

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """Called before a step's first micro-batch, after the scheduler set its learning rate."""
        del args, control
        if self.ended_s:
            self.look_s = max(self.look_s, time.monotonic() - self.ended_s)
        if state.global_step > self.first:
            self.trainer.expect(min(state.max_steps, self._steps(state.global_step)))
        steps = self.trainer.expected
        if optimizer is not None and steps < state.max_steps:
            for group in optimizer.param_groups:
                group["lr"] *= bend(state.global_step, state.max_steps, steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called after each step."""
        del args
        self.ended_s = time.monotonic()
        if state.global_step >= self._steps(state.global_step):
            control.should_training_stop = control.should_evaluate = control.should_save = True

    def _steps(self, step: int) -> int:
        """The steps that there will be at the speed since training began, or went on."""
        done, now = step - self.first, time.monotonic()
        left_s = self.ends_s - now - 2 * self.look_s  # one when it stops, one of the best model
        return step + math.floor(left_s * done / max(1e-9, now - self.began_s))


def bend(step: int, planned: int, steps: float) -> float:
    """What turns the learning rate of a cosine over ``planned`` steps into that of one over ``steps``."""

    def share(whole: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * min(1.0, step / whole)))

    return min(1.0, share(max(1.0, steps)) / max(1e-9, share(planned)))
