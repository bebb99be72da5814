"""transformers' Trainer with the loss of full recovery."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from ...common import processes
from ...common.errors import TsconvertError
from ...common.files import write_json
from ...text.training_rows import IGNORED
from ..config.full import FullRecovery
from ..masked.model_predictors import ModelPredictors
from ..penalty import FFNThresholds, SparsityPenalty
from .activations import ActivationMonitor, densities
from .loss import Losses, Teacher, TopK, distillation, distillation_on_likeliest, hidden_distance

# Shape suffixes: N sequences, S tokens a sequence, T tokens, V vocabulary.
_STATE = "recovery.json"
_FIRST_WEIGHT = 0.1  # of the penalty
_EXCESS = 1.03  # of the density asked for, up to which a model counts as having reached it
_PRICE = 5.0  # nats that a density e times as high as that costs a checkpoint in comparison
PREDICTOR = "predictor"
"""The name that predictors have in an FFN."""


class RecoveryTrainer(Trainer):
    """Cross-entropy, divergence from the teacher, hidden states, predictors' own losses; and what silences neurons.

    Args:
        how: the weights of the loss.
        silenced_by, up_passes: what brings the target sparsity (config/local.py).
        teacher: the dense model, not trained; None without one.
        peak: AdamW's learning rate for the model's weights.
        monitor: sees the model's FFNs, and has the predictors that are trained with it.
    """

    def __init__(
        self, *args: Any, how: FullRecovery, silenced_by: str, up_passes: float, teacher: nn.Module | None, peak: float,
        monitor: ActivationMonitor, **more: Any,
    ) -> None:  # fmt: skip
        super().__init__(*args, **more)
        self.how, self.teacher, self.peak, self.monitor = how, teacher, peak, monitor
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = False
        goal = how.target_sparsity
        self.goal = None if goal is None else 1 - goal
        follows = goal is not None and silenced_by == "threshold"
        self.thresholds = [
            FFNThresholds(ffn, ffn.activation, goal, up_passes) for ffn in monitor.ffns if goal and follows
        ]
        self.penalty = SparsityPenalty(None if follows else goal)
        self.penalty.weight = _FIRST_WEIGHT
        self.monitor.compares, self.monitor.penalised = follows, self.penalty.goal is not None
        self.monitor.counts = silenced_by == "count"
        self.expected = how.steps
        """Steps that there will be, as far as is known (callbacks.TimeLimit)."""
        self.few = self._few()
        self._parts: dict[str, list[float]] = {}
        self._fired: list[float] = []
        self._density = 0.0
        self._steered = -1
        self.layer_density: tuple[float, ...] = ()

    optimizer: Any
    control: Any

    @property
    def predictors(self) -> ModelPredictors | None:
        """Trained with the model."""
        return self.monitor.predictors

    def expect(self, steps: int) -> None:
        """Let the density reach its goal within so many steps of the training."""
        self.expected = max(1, steps)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW without decay; predictors have a learning rate of their own."""
        if self.optimizer is None:
            named = [(n, p) for n, p in (model or self.model).named_parameters() if p.requires_grad]
            groups = [{"params": [p for n, p in named if PREDICTOR not in n], "lr": self.peak}]
            if beside := [p for n, p in named if PREDICTOR in n]:
                groups.append({"params": beside, "lr": ModelPredictors.rate(self.model.config.hidden_size)})
            self.optimizer = torch.optim.AdamW(groups, lr=self.peak, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        optimizer: torch.optim.Optimizer = self.optimizer
        return optimizer

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:  # fmt: skip
        """The loss of one micro-batch."""
        del num_items_in_batch
        ids_NS = inputs["input_ids"]
        masked = self.predictors.to_mask(len(ids_NS)) if self.predictors else 0
        self.monitor.begin(ids_NS.numel(), masked * ids_NS.shape[1], learns=self.predictors is not None)
        outputs = self._pass(model, inputs)
        self.monitor.end()
        theirs = self._teach(inputs)
        losses = self._distilled(outputs, theirs, inputs)
        loss, hidden = losses.total, list(theirs.hidden_states[1:]) if theirs and self.how.hidden else []
        parts = {"divergence": losses.divergence}
        if not self.few or self.text_weight:
            parts["cross_entropy"] = losses.cross_entropy
        if hidden:
            parts["hidden"] = hidden_distance(list(outputs.hidden_states[1:]), hidden)
            loss = loss + self.how.hidden * parts["hidden"]
        if self.monitor.penalised:
            parts["price"] = self.monitor.penalty()
            loss = loss + self.penalty.weight * parts["price"]
        for own in self.monitor.losses:
            loss = loss + own
        self._note(float(loss.detach()), {name: float(value.detach()) for name, value in parts.items()})
        return (loss, outputs) if return_outputs else loss

    @property
    def text_weight(self) -> float:
        """The text's weight: beside a teacher for its first pass only; what was seen before is learnt by heart."""
        seen = self.how.divergence and (self.state.epoch or 0) >= 1
        return 0.0 if seen else self.how.cross_entropy

    def _few(self) -> bool:
        """Whether hidden states do for the loss, and the head is asked for the likeliest tokens alone."""
        how, dense, head = self.how, self.teacher, self.model.get_output_embeddings()
        wanted = how.likeliest and how.divergence and not how.train_embeddings
        if not wanted or dense is None or self.is_fsdp_enabled:
            return False
        return len(head.weight) > how.likeliest and all(map(plain_head, (self.model, dense)))

    def _pass(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> Any:
        """A forward pass with what the loss needs: logits, or hidden states."""
        asked: dict[str, Any] = {"output_hidden_states": self.how.hidden > 0 or self.few, "use_cache": False}
        with _headless(model) if self.few else nullcontext():
            return model(**forwarded(inputs), **asked)

    def _distilled(self, ours: Any, theirs: Any, inputs: dict[str, torch.Tensor]) -> Losses:
        """The loss by the outputs of the model and, if there is one, its teacher."""
        label_T, how = shifted(inputs["labels"]).flatten(), self.how
        if self.few:
            known_T = label_T != IGNORED
            student_TD, teacher_TD = (out.hidden_states[-1].flatten(0, 1)[known_T] for out in (ours, theirs))
            models: list[Any] = [self.model, self.teacher]
            student_VD, teacher_VD = (model.get_output_embeddings().weight for model in models)
            return distillation_on_likeliest(
                student_TD, teacher_TD, student_VD, teacher_VD, label_T[known_T], how.likeliest, self.text_weight,
                how.divergence,
            )  # fmt: skip
        teacher: Teacher = None
        if "top_index" in inputs:
            teacher = TopK(inputs["top_index"].flatten(0, 1), inputs["top_log"].flatten(0, 1))
        elif theirs is not None and how.divergence:
            teacher = theirs.logits.flatten(0, 1)
        return distillation(ours.logits.flatten(0, 1), teacher, label_T, self.text_weight, how.divergence)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-batch; after the last of a step the penalty is steered, or the thresholds follow."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        if self.predictors is not None:
            self.predictors.steer()
        density = self.monitor.density()
        self._fired.append(sum(density) / len(density))
        if self.accelerator.sync_gradients and self._steered != self.state.global_step:
            self._steered = self.state.global_step
            passed = self._steered / self.expected
            self._density = sum(self._fired) / len(self._fired)
            self.penalty.steer(passed, self._density)
            self._fired = []
            for thresholds, found in zip(self.thresholds, self.monitor.compared, strict=False):
                held = zip(*found, strict=True) if found else ((torch.empty(0),), (torch.empty(0),))
                thresholds.follow(self._steered, passed, *map(torch.cat, held))
        return loss

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Held-out perplexity and density; with predictors, under their mask as well."""
        model = self._wrap_model(self.model, training=False)
        loss, density = self._judge(model, masked=False)
        self._check(loss)
        found: dict[str, float] = {
            "loss": loss,
            "perplexity": math.exp(min(loss, 80.0)),
            "density": sum(density) / len(density),
        }
        self.layer_density = tuple(density)
        score = loss
        if self.predictors is not None:
            found["predicted_loss"] = self._judge(model, masked=True)[0]
            found["predicted_perplexity"] = math.exp(min(found["predicted_loss"], 80.0))
            score = 0.5 * (loss + found["predicted_loss"])
        # a model that is not sparse enough is no better for its loss
        excess = 0.0 if self.goal is None else math.log(max(1.0, found["density"] / (_EXCESS * self.goal)))
        found["objective"] = score + _PRICE * excess
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """With the means of the loss's parts since the last time."""
        if "loss" in logs:
            logs |= {name: sum(values) / len(values) for name, values in self._parts.items() if values}
            logs["density"] = self._density
            if self.monitor.penalised:
                logs["penalty_weight"] = self.penalty.weight
            self._parts = {}
        super().log(logs, start_time)

    @torch.no_grad()
    def _judge(self, model: nn.Module, *, masked: bool) -> tuple[float, list[float]]:
        model.eval()
        total, count = 0.0, 0.0
        fired = torch.zeros(self.monitor.layers, 2, dtype=torch.float64)
        for batch, counts in self._held():
            inputs = self._prepare_inputs(batch)
            tokens = inputs["input_ids"].numel()
            self.monitor.begin(tokens, tokens if masked else 0)
            with self.compute_loss_context_manager():
                logits_NSV = model(**forwarded(inputs), use_cache=False).logits
            self.monitor.end()
            if not counts:
                continue
            fired += self.monitor.fired
            label_T = shifted(inputs["labels"]).flatten()
            found = distillation(logits_NSV.flatten(0, 1), None, label_T, 1.0, 0.0)
            known = int((label_T != IGNORED).sum())
            total, count = total + float(found.cross_entropy) * known, count + known
        model.train()
        total, count, *flat = processes.sums(total, count, *fired.flatten().tolist())
        return total / max(1.0, count), densities(flat)

    def _held(self) -> Iterator[tuple[dict[str, torch.Tensor], bool]]:
        """This process's batches of held-out text, and whether they count: sharded models are passed equally often."""
        rows, world = self.args.eval_batch_size, processes.world()
        starts = range(0, len(self.eval_dataset), rows)
        for turn in range(-(-len(starts) // world)):
            number = turn * world + processes.rank()
            start = starts[number if number < len(starts) else 0]
            batch = [self.eval_dataset[i] for i in range(start, min(start + rows, len(self.eval_dataset)))]
            yield self.data_collator(batch), number < len(starts)

    @torch.no_grad()
    def _teach(self, inputs: dict[str, torch.Tensor]) -> Any:
        """What the teacher gives; None where there is none, or its logits were kept."""
        return None if self.teacher is None else self._pass(self.teacher, inputs)

    def _note(self, loss: float, parts: dict[str, float]) -> None:
        self._check(loss)
        for name, value in parts.items():
            self._parts.setdefault(name, []).append(value)

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise TsconvertError(
                f"the loss is {loss} at step {self.state.global_step}; {self.kept()}: lower the learning rate"
            )

    def kept(self) -> str:
        """Says what a failed run leaves."""
        checkpoints = filter(whole, Path(self.args.output_dir).glob("checkpoint-*"))
        last = max(checkpoints, key=lambda path: path.stat().st_mtime, default=None)
        return "no checkpoint was written yet" if last is None else f"the last good checkpoint is {last}"

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write the weights by the model's own names, which loading goes by; from_pretrained's differ for experts."""
        if self.args.should_save:
            folder = output_dir or self.args.output_dir
            self.model.save_pretrained(folder, state_dict=state_dict, save_original_format=False)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuse a checkpoint that left weights as they were; transformers only warns."""
        tied = getattr(self.model, "_tied_weights_keys", None) or ()
        if lacking := [*(key for key in load_result.missing_keys if key not in tied), *load_result.unexpected_keys]:
            raise TsconvertError(
                f"{self.args.output_dir}: its checkpoints have other tensors than this version's ({lacking[0]}); remove"
                " it and --resume"
            )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.monitor.refresh()
        processes.barrier()  # each process writes its own random state
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            state = {
                "penalty": vars(self.penalty), "thresholds": [thresholds.state() for thresholds in self.thresholds],
                "meter": self.monitor.state(), "expected": self.expected, "files": _synced(folder),
                "sequences": self.predictors.sequences if self.predictors else 0,
            }  # fmt: skip
            write_json(folder / _STATE, state)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        state = json.loads((Path(resume_from_checkpoint) / _STATE).read_text(encoding="utf-8"))
        vars(self.penalty).update(state["penalty"])
        # an earlier version's run has none: they start from here
        for thresholds, found in zip(self.thresholds, state.get("thresholds", ()), strict=False):
            thresholds.restore(found)
        self.monitor.restore(state["meter"])
        if self.predictors:
            self.predictors.sequences = state.get("sequences", 0)
        self.expect(state.get("expected", self.expected))

    def _load_best_model(self) -> None:
        """Load it with the thresholds that it was judged with."""
        super()._load_best_model()
        best = Path(self.state.best_model_checkpoint or "") / _STATE
        if best.is_file():
            self.monitor.restore(json.loads(best.read_text(encoding="utf-8"))["meter"])


@contextmanager
def _headless(model: nn.Module) -> Iterator[None]:
    """The hidden states in the place of logits: a head, even of no token, would have its matrix copied to bfloat16."""
    inner: Any = getattr(model, "module", model)  # DDP's is the model
    head = inner.get_output_embeddings()
    head.forward = lambda hidden_NSD: hidden_NSD
    try:
        yield
    finally:
        del head.forward


def whole(checkpoint: Path) -> bool:
    """A checkpoint of the trainer that was written to its end, and of which nothing was removed."""
    try:
        files = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))["files"]
        return all((checkpoint / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _synced(folder: Path) -> dict[str, int]:
    """The sizes of all files in ``folder``, which are on the disk now."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _STATE):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        found[str(path.relative_to(folder))] = path.stat().st_size
    return found


def plain_head(model: Any) -> bool:
    """Whether the logits are the head's product with the last hidden states, and nothing is done to them."""
    config, head = model.config, model.get_output_embeddings()
    changed = ("final_logit_softcapping", "logits_scaling", "logit_scale")
    return head.bias is None and all(getattr(config, key, None) in (None, 1.0) for key in changed)


def shifted(labels_NS: torch.Tensor) -> torch.Tensor:
    """What follows each token, IGNORED behind the last."""
    return torch.cat([labels_NS[:, 1:], torch.full_like(labels_NS[:, :1], IGNORED)], 1)


def forwarded(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the model is given; positions only where a row holds several documents."""
    found = {"input_ids": inputs["input_ids"]}
    if "position_ids" in inputs:
        position_NS = inputs["position_ids"]
        if bool((position_NS[:, 1:] == 0).any()):
            found["position_ids"] = position_NS
    return found
