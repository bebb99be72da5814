"""Choosing tokens."""

import numpy as np
import pytest

from tsconvert.common.errors import TsconvertError
from tsconvert.runner.sampling import Sampler, Sampling, candidates, penalized

LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.3, 0.15], np.float32))


def kept(**options):
    return candidates(LOGITS, Sampling(temperature=1.0, **{"top_k": 0, "top_p": 1.0, "min_p": 0.0, **options}))


def test_zero_temperature_takes_the_likeliest_token():
    assert Sampler(Sampling()).choose(LOGITS) == 1


def test_what_is_left_of_the_vocabulary():
    tokens, probability = kept()
    assert tokens.tolist() == [1, 3, 4, 0, 2]
    np.testing.assert_allclose(probability, [0.4, 0.3, 0.15, 0.1, 0.05], rtol=1e-5)
    assert kept(top_k=2)[0].tolist() == [1, 3]
    assert kept(top_k=-1)[0].tolist() == [1, 3, 4, 0, 2]
    assert kept(top_p=0.69)[0].tolist() == [1, 3]
    assert kept(top_p=0.71)[0].tolist() == [1, 3, 4]
    assert kept(top_p=0.0)[0].tolist() == [1]
    assert kept(min_p=0.3)[0].tolist() == [1, 3, 4]
    assert kept(top_k=3, top_p=0.5)[0].tolist() == [1, 3]
    assert kept(top_k=1)[1].tolist() == [1.0]


def test_equal_logits_keep_their_order():
    tokens, _ = candidates(np.zeros(9, np.float32), Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0))
    assert tokens.tolist() == list(range(9))


def test_draws_follow_the_probabilities_and_the_seed():
    options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    one, two = Sampler(Sampling(seed=3, **options)), Sampler(Sampling(seed=3, **options))
    draws = [one.choose(LOGITS) for _ in range(4000)]
    assert draws == [two.choose(LOGITS) for _ in range(4000)]
    np.testing.assert_allclose(np.bincount(draws) / 4000, np.exp(LOGITS), atol=0.03)
    cold = Sampler(Sampling(seed=3, **{**options, "temperature": 0.05}))
    assert sum(cold.choose(LOGITS) == 1 for _ in range(200)) > 190


def test_repeats_are_made_less_likely():
    logits = np.array([2.0, -2.0, 1.0], np.float32)
    np.testing.assert_allclose(penalized(logits, [0, 1, 1], 2.0), [1.0, -4.0, 1.0])
    np.testing.assert_array_equal(logits, [2.0, -2.0, 1.0])
    sampler = Sampler(Sampling(repeat_penalty=3.0, repeat_last=2))
    assert sampler.choose(logits, [0, 0]) == 2
    assert sampler.choose(logits, [0, 1, 1]) == 0


@pytest.mark.parametrize(
    ("field", "value", "limits"),
    [
        ("temperature", -1, "0 to 100"),
        ("top_p", 1.5, "0 to 1"),
        ("min_p", -0.1, "0 to 1"),
        ("top_k", -2, "-1 to 1e+09"),
    ],
)
def test_senseless_options_name_the_field(field, value, limits):
    with pytest.raises(TsconvertError) as caught:
        Sampling(**{field: value})
    assert str(caught.value) == f"{field} is {value}: it must be {limits}"


def test_logits_that_are_no_numbers_are_refused():
    with pytest.raises(TsconvertError) as caught:
        Sampler(Sampling()).choose(np.array([0.0, np.nan], np.float32))
    assert str(caught.value) == (
        "the logits are NaN or infinite: the file's weights are damaged or too large for their type; export the"
        " model again with --type F32"
    )


def test_all_tokens_are_recent():
    def chosen(**options):
        return Sampler(Sampling(repeat_penalty=100.0, **options)).choose(np.array([1.0, 2.0, 1.5], np.float32), [1, 2])

    assert [chosen(repeat_last=last) for last in (0, 1, 2, -1)] == [1, 1, 0, 0]
