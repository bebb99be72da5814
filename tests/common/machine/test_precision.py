"""The rate of training that plans reckon with, against torch's own count of operations."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tsconvert.common.machine import precision


@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_rate_of_training_is_operations_over_time(monkeypatch: pytest.MonkeyPatch, bfloat16: bool):
    ticks = itertools.count(step=0.05)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(ticks))
    with FlopCounterMode(display=False) as counter:
        rate = precision.training_rate(300, 64, "cpu", bfloat16=bfloat16)
    # looks at the clock: once at the start, before each step, at the end; one step goes before
    steps = 3
    operations = counter.get_total_flops() * steps / (steps + 1)
    assert rate == pytest.approx(0.5 * operations / (0.05 * (steps + 2)))


def test_a_wide_ffn_is_measured_by_a_part_of_it(monkeypatch: pytest.MonkeyPatch):
    shapes = []
    full = torch.full
    monkeypatch.setattr(torch, "full", lambda shape, *rest, **more: shapes.append(shape) or full(shape, *rest, **more))
    ticks = itertools.count()
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(ticks))
    precision.training_rate(4096, 1 << 20, "cpu", bfloat16=False)
    assert shapes == [(1024, 4096), (1024, 4096), (4096, 1024)]
