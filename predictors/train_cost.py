"""What training predictors takes in memory, disk and time: the arithmetic of `predictors --dry-run`."""

from ..common.cost import LIBRARIES_BYTES, Cost
from ..common.machine.precision import product_rate
from ..model.spec import ModelSpec
from ..model.sweep import IN_MEMORY_BYTES, batch_tokens
from .config import PredictorConfig
from .training.rank import highest_rank, ranks_to_try

_TRAINED_BYTES = 20  # of each predictor weight: itself, as stored, gradient, AdamW's two moments
_LABELS_BYTES = 26  # per token and neuron of a step: gate, up, h, energies, weights, logits
_TRIED = 3  # ranks that a search usually tries


def predictors_cost(spec: ModelSpec, config: PredictorConfig, rate: float | None = None) -> Cost:
    """The cost of ``config`` on a model of ``spec``, in one process.

    Args:
        rate: floating-point operations a second of the machine that is planned for; None measures this one's.
    """
    ranks = [config.rank] if config.rank else list(ranks_to_try(spec.width, highest_rank(spec, config.budget)))[:_TRIED]
    each, ffns = spec.width + spec.neurons, spec.layers * spec.ffns
    attention, ffn = spec.layer_weights
    active = ffn // spec.ffns * spec.active_ffns
    hidden = 4 * config.tokens * spec.width
    batch, steps = config.training.batch_tokens, config.training.steps
    step = batch * spec.neurons * _LABELS_BYTES
    sweep = 14 * min(config.tokens, batch_tokens(spec)) * spec.neurons * spec.active_ffns
    memory = {
        "libraries": LIBRARIES_BYTES,
        "layer": 4 * (attention + ffn),
        "layer's predictors": max(ranks, default=0) * each * _TRAINED_BYTES + 4 * sum(ranks) * each * spec.ffns,
        "step": max(step, sweep),
        "inputs": hidden,
        "hidden states": hidden if hidden <= IN_MEMORY_BYTES else 0,
    }
    labels = 4 * spec.width * spec.neurons
    per_step = sum(labels + 6 * rank * each for rank in ranks)
    judging = config.tokens // 8 * sum(3 * labels + 6 * rank * each for rank in ranks) / max(1, spec.ffns)
    passes = 2 * config.tokens * (attention + active) * 1.25
    flops = spec.layers * passes + ffns * (steps * batch * per_step + judging)
    rate = rate or product_rate(config.device, bfloat16=bool(config.training.autocast))
    return Cost(
        memory_bytes=sum(memory.values()), memory=memory, disk_bytes=4 * ffns * each * 2 * sum(ranks),
        scratch_bytes=0 if hidden <= IN_MEMORY_BYTES else hidden, time_s=flops / rate, rate=rate,
    )  # fmt: skip
