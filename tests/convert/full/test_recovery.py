"""The training of the whole model: its loss, what it sees of the FFNs, resuming, and what goes wrong."""

import json
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, TrainerCallback

from tsconvert.common.errors import TsconvertError
from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.config.full import FullRecovery
from tsconvert.convert.config.local import LocalRecovery
from tsconvert.convert.full import recovery, stage, trainer
from tsconvert.convert.full.activations import ActivationMonitor
from tsconvert.convert.full.data import full_rows
from tsconvert.convert.full.loss import TopK, distillation, distillation_on_likeliest, hidden_distance
from tsconvert.convert.relufy import relufy
from tsconvert.model.checkpoint import Checkpoint
from tsconvert.model.modeling_turbosparse import SparseExperts
from tsconvert.model.whole_model import sparse_model
from tsconvert.text.sources import Source
from tsconvert.text.training_rows import IGNORED

Make = Callable[..., Path]
SHORT = FullRecovery(tokens=4096, batch_tokens=512, micro_tokens=256, evaluations=4, target_sparsity=0.8)


def config(model: Path, out: Path, **fields: object) -> RelufyConfig:
    training = LocalRecovery(steps=10, batch_tokens=256, learning_rate=3e-3, autocast=False)
    base = {"tokens": 4096, "context": 128, "training": training, "recover": "full", "full": SHORT}
    return RelufyConfig(model=str(model), out=out, **(base | fields))


@pytest.fixture(scope="module")
def sparse(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What local recovery makes of the tiny dense model; not to be changed."""
    out = tmp_path_factory.mktemp("local") / "sparse"
    relufy(config(dense, out, recover="local"))
    return out


@pytest.mark.parametrize("kind", ["none", "all", "top"])
def test_the_losses_gradient_is_autograds(kind: str):
    torch.manual_seed(0)
    student, other, label = torch.randn(7, 11), torch.randn(7, 11), torch.randint(11, (7,))
    label[3] = IGNORED
    known = label != IGNORED
    log_other = other.log_softmax(-1)
    kept = TopK(*reversed(log_other.topk(4)))
    teacher = {"none": None, "all": other, "top": kept}[kind]
    ours, theirs = student.clone().requires_grad_(), student.clone().requires_grad_()
    losses = distillation(ours, teacher, label, 0.7, 1.3)
    losses.total.backward()
    log = theirs.log_softmax(-1)
    expected = 0.7 * functional.cross_entropy(theirs, label, ignore_index=IGNORED)
    if kind == "all":
        divergence = (log_other.exp() * (log_other - log)).sum(-1)[known].mean()
    elif kind == "top":  # what is not kept is one lump
        mine, goal = log.gather(1, kept.index_TK), kept.log_TK
        rest, left = 1 - mine.exp().sum(-1), 1 - goal.exp().sum(-1)
        divergence = ((goal.exp() * (goal - mine)).sum(-1) + left * (left / rest).log())[known].mean()
    else:
        divergence = torch.zeros(())
    (expected + 1.3 * divergence).backward()
    assert losses.total.item() == pytest.approx((expected + 1.3 * divergence).item(), rel=1e-5)
    assert float(losses.divergence) == pytest.approx(divergence.item(), rel=1e-5)
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)
    assert not ours.grad[3].any()


@pytest.mark.parametrize(("likeliest", "share"), [(5, 0.0), (11, 0.0), (2, 0.4), (8, 0.4), (11, 0.4)])
def test_the_loss_on_the_likeliest_tokens_has_autograds_gradient(likeliest: int, share: float):
    torch.manual_seed(0)
    student, teacher, ours_VD, theirs_VD = (torch.randn(rows, 6) for rows in (7, 7, 11, 11))
    ours, theirs = student.clone().requires_grad_(), student.clone().requires_grad_()
    label_T = torch.tensor([3, 9, 3, 0, 10, 9, 3])
    found = distillation_on_likeliest(ours, teacher, ours_VD, theirs_VD, label_T, likeliest, share, 1.3)
    (2 * found.total).backward()
    goal = teacher @ theirs_VD.T
    mass_V = goal[::4].softmax(-1).sum(0)  # of every fourth token
    if share:
        mass_V[label_T] += 100  # the labels first, and all of them
        likeliest = max(likeliest, 4)
    chosen = mass_V.topk(likeliest).indices
    log, log_goal = ((theirs @ ours_VD.T)[:, chosen].log_softmax(-1), goal[:, chosen].log_softmax(-1))
    divergence = functional.kl_div(log, log_goal, reduction="batchmean", log_target=True)
    entropy = torch.zeros(())
    if share:
        entropy = functional.nll_loss(log, (label_T[:, None] == chosen).int().argmax(1))
    (2 * (share * entropy + 1.3 * divergence)).backward()
    assert found.divergence.item() == pytest.approx(divergence.item(), rel=1e-5)
    assert found.cross_entropy.item() == pytest.approx(entropy.item(), rel=1e-5)
    assert found.total.item() == pytest.approx((share * entropy + 1.3 * divergence).item(), rel=1e-5)
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)


@pytest.mark.parametrize("entropy", [0.0, 0.5])
def test_all_but_one_of_the_likeliest_tokens_train_as_the_whole_vocabulary(
    entropy: float, sparse: Path, dense: Path, tmp_path: Path
):
    how = replace(SHORT, cross_entropy=entropy)
    found = [
        relufy(config(sparse, tmp_path / str(n), teacher=str(dense), full=replace(how, likeliest=n))).full
        for n in (0, 4095)
    ]
    assert found[1].losses[-1][1] == pytest.approx(found[0].losses[-1][1], rel=1e-3)


def test_hidden_distance_is_relative():
    teacher = [torch.randn(2, 3, 8), 1000 * torch.randn(2, 3, 8)]
    assert float(hidden_distance([1.1 * layer for layer in teacher], teacher)) == pytest.approx(0.01, rel=1e-4)


class Noted(SparseExperts):
    """Experts that note each one's activations and down weight."""

    def __init__(self, experts: SparseExperts, index: int, seen: list) -> None:
        torch.nn.Module.__init__(self)
        vars(self).update(vars(experts))
        self.index, self.seen = index, seen

    def activations(self, x_TD, gate_up_FD, down_DF, expert, token):
        h_TF = super().activations(x_TD, gate_up_FD, down_DF, expert, token)
        self.seen.append((self.index, h_TF, down_DF))
        return h_TF


@pytest.mark.parametrize("family", ["mistral", "mixtral"])
def test_the_monitor_sees_what_fires_and_its_penalty_has_autograds_gradient(
    make_checkpoint: Make, tmp_path: Path, family
):
    relufy(RelufyConfig(model=str(make_checkpoint(family)), out=tmp_path / "sparse", recover="none", align=False))
    model = sparse_model(Checkpoint(tmp_path / "sparse"))
    ids = torch.randint(3, 4096, (2, 16))
    seen: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    for index, layer in enumerate(model.model.layers):
        if family == "mixtral":
            layer.mlp.experts = Noted(layer.mlp.experts, index, seen)
        else:
            down = layer.mlp.down_proj
            down.register_forward_pre_hook(lambda m, h, index=index: seen.append((index, h[0], m.weight)))
    model(ids)
    l1 = [sum((h.abs() * down.detach().norm(dim=0)).sum() for i, h, down in seen if i == layer) for layer in (0, 1)]
    first = [value.item() / ids.numel() for value in l1]
    sum(value / ids.numel() / unit for value, unit in zip(l1, first, strict=True)).div(2).backward()
    name = next(n for n, _ in model.named_parameters() if "0.mlp" in n and "gate" in n and "experts" in n + "experts")
    expected = dict(model.named_parameters())[name].grad.clone()
    model.zero_grad()
    monitor = ActivationMonitor(model)
    with torch.no_grad():
        monitor.begin(ids.numel())
        model(ids)
        monitor.end()
    fired = [sum(int((h != 0).sum()) for i, h, _ in seen if i == layer) for layer in (0, 1)]
    whole = [sum(h.numel() for i, h, _ in seen if i == layer) for layer in (0, 1)]
    assert monitor.density() == pytest.approx([f / w for f, w in zip(fired, whole, strict=True)])
    monitor.begin(ids.numel())
    model(ids)
    monitor.end()
    penalty = monitor.penalty()
    assert penalty.item() == pytest.approx(1.0)
    penalty.backward()
    assert torch.allclose(dict(model.named_parameters())[name].grad, expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("family", ["mistral", "mixtral"])
def test_thresholds_reach_the_target_and_are_what_every_reader_computes(
    make_checkpoint: Make, tmp_path: Path, family: str
):
    training = LocalRecovery(steps=20, batch_tokens=512, target_sparsity=0.9, autocast=False)
    out, full = tmp_path / "out", replace(SHORT, target_sparsity=None)
    report = relufy(config(make_checkpoint(family), out, training=training, full=full))
    thresholds = json.loads((out / "config.json").read_text())["ffn_thresholds"]
    assert thresholds == list(report.full.thresholds.own) == list(Checkpoint(out).spec.thresholds)
    assert all(value > 0 for value in thresholds)
    assert sum(report.full.density) / len(report.full.density) == pytest.approx(0.1, abs=0.02)
    assert report.full.tokens_per_s > 0
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True, dtype=torch.float32)
    ffns = [getattr(layer.mlp, "experts", layer.mlp) for layer in model.model.layers]
    assert [ffn.threshold for ffn in ffns] == thresholds
    held = full_rows(Checkpoint(out), config(out, out), full, 1)[1]
    assert stage.perplexity(model, held, "cpu") == pytest.approx(
        report.full.perplexity, rel=2e-2
    )  # dtype of the weights


@pytest.mark.parametrize("family", ["mistral", "mixtral"])
def test_the_best_checkpoint_is_the_model_that_is_written(make_checkpoint: Make, tmp_path: Path, family: str):
    training = LocalRecovery(steps=10, batch_tokens=256, target_sparsity=0.9, autocast=False)
    worse = replace(SHORT, learning_rate=0.1, target_sparsity=None, patience=1, evaluations=8)
    report = relufy(config(make_checkpoint(family), tmp_path / "out", training=training, full=worse, dtype="F32"))
    best = next(e for e in report.full.evaluations if e.step == report.full.best_step)
    assert report.full.best_step < report.full.steps
    assert report.full.perplexity == pytest.approx(best.perplexity, rel=1e-5)
    assert sum(report.full.density) / len(report.full.density) == pytest.approx(best.density, rel=1e-6)


@pytest.mark.parametrize("family", ["mistral", "mixtral"])
def test_the_whole_model_is_trained_and_written(make_checkpoint: Make, tmp_path: Path, family: str):
    dense, out = make_checkpoint(family), tmp_path / "out"
    report = relufy(config(dense, out, full=replace(SHORT, learning_rate=3e-3, cross_entropy=1.0)))
    assert report.full is not None
    assert report.perplexity < report.full.evaluations[0].perplexity
    assert [look.step for look in report.full.evaluations] == [2, 4, 6, 8, 8]
    assert Checkpoint(out).spec.activation == "drelu"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    said = json.loads((out / "tsconvert.json").read_text())["report"]
    assert said["full"]["losses"][-1][0] == 8
    # what was judged is what was written
    model, rows = sparse_model(Checkpoint(out)), full_rows(Checkpoint(out), config(dense, out), SHORT, 1)
    entropy = model(torch.from_numpy(rows[1].rows_NS), labels=torch.from_numpy(rows[1].rows_NS)).loss
    assert entropy.exp().item() == pytest.approx(report.perplexity, rel=1e-4)


@pytest.mark.parametrize("divergence", [1.0, 0.0])
def test_beside_a_teacher_text_counts_on_its_first_pass_only(
    divergence: float, sparse: Path, dense: Path, tmp_path: Path, monkeypatch
):
    weights, real = [], trainer.distillation

    def noted(ours, theirs, label, text, teacher):
        weights.append(text)
        return real(ours, theirs, label, text, teacher)

    monkeypatch.setattr(trainer, "distillation", noted)
    (tmp_path / "text").write_text("Call me Ishmael. Some years ago, never mind how long, I went to sea. " * 60)
    how = replace(SHORT, cross_entropy=0.5, divergence=divergence, likeliest=0, tokens=2048, micro_tokens=512)
    data = (Source(path=str(tmp_path / "text")),)
    relufy(config(sparse, tmp_path / "out", teacher=str(dense), full=how, data=data))
    trained = [weight for weight in weights if weight != 1]  # what judges has weight 1
    assert trained == ([0.5, 0.5, 0.0, 0.0] if divergence else [0.5] * 4)


def test_a_killed_run_goes_on_to_the_same_weights(sparse: Path, dense: Path, tmp_path: Path, monkeypatch):
    run = config(sparse, tmp_path / "whole", teacher=str(dense))
    whole = relufy(run)

    class Dies(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 5:
                raise KeyboardInterrupt

    real = stage.Progress
    monkeypatch.setattr(stage, "Progress", lambda _: Dies())
    killed = replace(run, out=tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        relufy(killed)
    assert not (tmp_path / "killed").exists()
    monkeypatch.setattr(stage, "Progress", real)
    with pytest.raises(TsconvertError) as caught:
        relufy(killed)
    unfinished = tmp_path / "killed.full"
    assert str(caught.value) == (
        f"{unfinished}: holds an unfinished run; go on with --resume, or remove it to start again"
    )
    resumed = relufy(replace(killed, resume=True))
    assert resumed.full.losses == whole.full.losses
    files = [folder / "model.safetensors" for folder in (tmp_path / "whole", tmp_path / "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_run_that_died_while_it_wrote_trains_no_more(sparse: Path, dense: Path, tmp_path: Path, monkeypatch):
    run, real = config(sparse, tmp_path / "out", teacher=str(dense)), recovery.write_model

    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(recovery, "write_model", dies)
    with pytest.raises(KeyboardInterrupt):
        relufy(run)
    monkeypatch.setattr(recovery, "write_model", real)
    again = relufy(replace(run, resume=True)).full
    assert again.steps == 8
    assert [step for step, _ in again.losses] == list(range(1, 9))


def test_kept_logits_of_the_whole_vocabulary_train_as_the_teacher_does(sparse: Path, dense: Path, tmp_path: Path):
    run = config(sparse, tmp_path / "along", teacher=str(dense))
    along = relufy(run)
    kept = relufy(replace(run, out=tmp_path / "kept", full=replace(SHORT, top_logits=4096)))
    assert kept.full.losses[-1][1] == pytest.approx(along.full.losses[-1][1], rel=1e-2)  # kept in float16


def test_a_loss_that_is_no_number_leaves_the_last_checkpoint(sparse: Path, dense: Path, tmp_path: Path):
    out = tmp_path / "out"
    with pytest.raises(TsconvertError) as caught:
        relufy(config(sparse, out, teacher=str(dense), full=replace(SHORT, learning_rate=1e20, evaluations=8)))
    last = tmp_path / "out.full" / "checkpoint-1"
    assert str(caught.value) == (
        f"the loss is nan at step 2; the last good checkpoint is {last}: lower the learning rate"
    )
    assert (last / "model.safetensors").is_file()


def test_a_full_disk_leaves_the_last_checkpoint(sparse: Path, dense: Path, tmp_path: Path):
    out, limits = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(TsconvertError) as caught:
            relufy(config(sparse, out, teacher=str(dense)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    full = tmp_path / "out.full"
    assert str(caught.value) == f"{full}: the disk is full; no checkpoint was written yet: make room and --resume"


def test_a_dry_run_says_what_it_takes_and_writes_nothing(dense: Path, tmp_path: Path):
    local, full = (
        relufy(config(dense, tmp_path / "out", recover=kind, dry_run=True)).cost for kind in ("local", "full")
    )  # fmt: skip
    assert full.time_s > local.time_s
    assert full.scratch_bytes == 36 * Checkpoint(dense).spec.parameters
    assert not list(tmp_path.iterdir())


def test_a_sparse_model_needs_its_teacher(sparse: Path, tmp_path: Path):
    with pytest.raises(TsconvertError) as caught:
        relufy(config(sparse, tmp_path / "out"))
    assert str(caught.value) == f"{sparse}: is drelu already; --teacher DENSE says which model to learn from"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"tokens": 0}, "tokens is 0: it must be at least 1"),
        ({"divergence": -1.0}, "divergence is -1.0: it must be at least 0"),
        ({"cross_entropy": 0.0, "divergence": 0.0}, "cross_entropy, divergence and hidden are all 0: there is nothing"),
    ],
)
def test_bad_settings_are_said_in_one_sentence(fields: dict, sentence: str):
    with pytest.raises(TsconvertError, match=sentence.replace(".", "\\.")):
        FullRecovery(**fields)


def test_a_share_of_attentions_outputs_is_the_students_alone(sparse: Path, dense: Path, tmp_path: Path):
    """Trained and judged on the student's largest outputs; the teacher keeps all of its own."""
    found = {}
    for share in (None, 0.25):
        full = replace(SHORT, tokens=512, evaluations=1, attention_share=share)
        out = tmp_path / f"{share}"
        found[share] = relufy(config(sparse, out, teacher=str(dense), full=full)).full
        assert json.loads((out / "tsconvert.json").read_text())["settings"]["full"].get("attention_share") == share
    assert found[0.25].dense_perplexity == found[None].dense_perplexity
    assert found[0.25].losses[0][1] > 1.5 * found[None].losses[0][1]  # of the first step: further from the teacher
    with pytest.raises(TsconvertError, match=r"^attention_share is 0: it must be above 0 and at most 1$"):
        replace(SHORT, attention_share=0.0)
