"""What a `relufy` run takes in memory, disk and time: the arithmetic of `--dry-run`."""

from ..common.cost import COPY_BYTES_PER_S, LIBRARIES_BYTES, Cost
from ..common.machine.precision import training_rate
from ..model.spec import ModelSpec
from ..model.sweep import IN_MEMORY_BYTES, batch_tokens
from .config import RelufyConfig

_TORCH_BYTES = 155_000_000
_TRAINED_BYTES = 12  # float32 gradient and AdamW's two moments, of each weight that is trained
_HEADS_BYTES = 4 * 6  # per token and width: the step's inputs, targets, residuals and their gradients
_STEP_BYTES = {False: 30, True: 27}  # per token and neuron in a step: gate, up, both relus, h, penalty and gradients
_FULL_NEURON_BYTES, _FULL_WIDTH_BYTES = 14, 30  # per token and layer in a step of the whole model
_PASS_BYTES = {False: 16, True: 10}  # the same without gradients


def relufy_cost(
    spec: ModelSpec, source_bytes: int, output_bytes: int, config: RelufyConfig, rate: float | None = None
) -> Cost:
    """The cost of ``config`` on a model of ``spec``, in one process.

    Args:
        rate: floating-point operations a second of the machine that is planned for; None measures this one's.
    """
    if config.recover == "none" and not config.align:
        tensor = 12 * max(spec.width * spec.neurons, spec.width * spec.vocab) if config.dtype else 0
        memory = {"libraries": _TORCH_BYTES, "one tensor": tensor}
        time_s, rate, scratch = (source_bytes + output_bytes) / COPY_BYTES_PER_S, None, 0
    else:
        memory, scratch = _memory(spec, config)
        rate = rate or training_rate(spec.width, spec.neurons, config.device, bfloat16=bool(config.training.autocast))
        time_s = flops(spec, config) / rate + (source_bytes + output_bytes) / COPY_BYTES_PER_S
    return Cost(
        memory_bytes=sum(memory.values()), memory=memory, disk_bytes=output_bytes, scratch_bytes=scratch,
        time_s=time_s, rate=rate,
    )  # fmt: skip


def flops(spec: ModelSpec, config: RelufyConfig) -> float:
    """Floating-point operations of the whole run: a forward pass is two for each weight and token."""
    attention, ffn = spec.layer_weights
    active = ffn // spec.ffns * spec.active_ffns
    scores = 2 * spec.heads * spec.head_dim * config.context
    output = spec.width * spec.heads * spec.head_dim
    layers = config.layer_stage
    passes = 2 * layers.tokens * (3 * (attention + scores) + 4 * active)  # teacher, student, alignment, judging
    steps = 0
    if layers.recover == "local":
        steps = 6 * config.training.steps * config.training.batch_tokens * (active + output)
    head = 2 * 2 * layers.tokens // 16 * spec.width * spec.vocab
    return float(spec.layers * (passes + steps) + head) + (_full_flops(spec, config) if config.recover == "full" else 0)


def _full_flops(spec: ModelSpec, config: RelufyConfig) -> float:
    """Operations of the whole model's training: forward, backward, the teacher's forward; the head stays as it is."""
    attention, ffn = spec.layer_weights
    active = ffn // spec.ffns * spec.active_ffns
    layer = attention + active + 2 * spec.heads * spec.head_dim * config.context
    teacher = 2 if config.full.divergence or config.full.hidden else 0
    known = teacher * spec.vocab + (6 if config.full.train_embeddings else 4) * _head_tokens(spec, config)
    return float(config.full.tokens * ((6 + teacher) * spec.layers * layer + known * spec.width))


def _head_tokens(spec: ModelSpec, config: RelufyConfig) -> int:
    """The tokens of the vocabulary that the student's head is asked for."""
    full = config.full
    every = full.top_logits or full.train_embeddings or not full.divergence
    return spec.vocab if every or not full.likeliest else min(spec.vocab, full.likeliest)


def _full_memory(spec: ModelSpec, config: RelufyConfig) -> dict[str, int]:
    full, autocast = config.full, bool(config.training.autocast)
    frozen = 0 if full.train_embeddings else spec.vocab * spec.width * (1 if spec.tied else 2)
    active = spec.neurons * spec.active_ffns
    layers = 1 if full.checkpointing else spec.layers
    return {
        "libraries": LIBRARIES_BYTES,
        "model and teacher": spec.parameters * ((4 + 2 * autocast) + (2 if autocast else 4)),
        "training": _TRAINED_BYTES * (spec.parameters - frozen),
        "step": full.micro_tokens * (layers * (_FULL_NEURON_BYTES * active + _FULL_WIDTH_BYTES * spec.width)),
        "logits": full.micro_tokens * (spec.vocab + 2 * _head_tokens(spec, config)) * (2 if autocast else 4),
    }


def _memory(spec: ModelSpec, config: RelufyConfig) -> tuple[dict[str, int], int]:
    attention, ffn = spec.layer_weights
    inner, autocast = spec.heads * spec.head_dim, bool(config.training.autocast)
    stage = config.layer_stage
    buffers = [4 * stage.tokens * width for width in (spec.width, spec.width, inner)]
    widest = max(spec.width * spec.neurons, spec.width * inner)
    active = spec.neurons * spec.active_ffns
    layer = {"libraries": LIBRARIES_BYTES, "layer": 4 * (attention + ffn)}
    if stage.recover == "local":
        trained = ffn + spec.width * inner * config.training.train_attention
        batch = config.training.batch_tokens
        layer["training"] = trained * (_TRAINED_BYTES + 2 * autocast)
        layer["step"] = batch * (active * _STEP_BYTES[autocast] + spec.width * _HEADS_BYTES)
    else:
        tokens = min(stage.tokens, batch_tokens(spec))
        layer["pass"] = max(tokens * active * _PASS_BYTES[autocast], 8 * widest)
    head = {"libraries": LIBRARIES_BYTES, "output head": (8 if spec.tied else 6) * spec.width * spec.vocab}
    head["logits"] = 3 * 4 * config.context * spec.vocab
    whole = _full_memory(spec, config) if config.recover == "full" else head
    memory = max(layer, head, key=lambda parts: sum(parts.values()))
    if sum(whole.values()) > sum(memory.values()):
        return whole, 3 * 12 * spec.parameters
    memory["hidden states"] = sum(size for size in buffers if size <= IN_MEMORY_BYTES)
    return memory, sum(size for size in buffers if size > IN_MEMORY_BYTES)
