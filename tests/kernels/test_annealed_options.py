"""What the options of ``RTKMALA`` and ``RTKULD`` come to; nothing is run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_rtk as rtk
from numpyro_rtk import paths
from numpyro_rtk.core.warmup.adapt import Frame
from numpyro_rtk.core.warmup.annealed import first_adaptation
from numpyro_rtk.kernels.state import AdaptState
from numpyro_rtk.noise import angle_ladder, log_snr_ladder, uniform_ladder
from tests.kernels.conftest import MIXTURE, model

SIMPSON = rtk.MALA(acceptance="simpson")
EXACT, WEIGHTED, RAW = (True, True), (False, True), (False, False)
# segments, steps of the lowest two, whether corrected and weighted, predictor
DEFAULTS = {
    "mala": (lambda: rtk.RTKMALA(model), 24, (1, 1), EXACT, "gaussian"),
    "mala, raw": (
        lambda: rtk.RTKMALA(model, corrected=False),
        24,
        (1, 1),
        WEIGHTED,
        "gaussian",
    ),
    "mala, from scores": (
        lambda: rtk.RTKMALA(model, inner=SIMPSON),
        24,
        (1, 1),
        RAW,
        "gaussian",
    ),
    "mala by itself": (
        lambda: rtk.RTKMALA(score=MIXTURE),
        13,
        (3, 0),
        RAW,
        "multistep",
    ),
    "mala by itself, with weights": (
        lambda: rtk.RTKMALA(score=MIXTURE, predictor="gaussian"),
        13,
        (3, 0),
        WEIGHTED,
        "gaussian",
    ),
    "uld": (lambda: rtk.RTKULD(model), 24, (1, 1), RAW, "gaussian"),
    "uld, adjusted": (
        lambda: rtk.RTKULD(model, adjusted=True),
        24,
        (1, 1),
        EXACT,
        "gaussian",
    ),
    "uld by itself": (lambda: rtk.RTKULD(score=MIXTURE), 13, (6, 0), RAW, "multistep"),
}


@pytest.mark.parametrize("case", DEFAULTS.values(), ids=DEFAULTS)
def test_defaults(case):
    build, num_segments, lowest, kind, predictor = case
    options = build()._options
    ladder = log_snr_ladder if options.has_likelihood else angle_ladder
    np.testing.assert_array_equal(options.times, ladder(num_segments))
    assert options.num_steps == lowest + (0,) * (num_segments - 2)
    assert (options.is_corrected, options.is_weighted) == kind
    assert options.predictor == predictor
    assert options.target_accept_prob == (0.94 if predictor == "multistep" else 0.8)


PUBLISHED = {
    "mala": (lambda **o: rtk.RTKMALA.as_published(**o), rtk.MALA(num_leapfrog=1)),
    "uld": (lambda **o: rtk.RTKULD.as_published(**o), rtk.ULD().unadjusted()),
}


@pytest.mark.parametrize("case", PUBLISHED.values(), ids=PUBLISHED)
@pytest.mark.parametrize("target", [{"model": model}, {"score": MIXTURE}])
def test_published_setting(case, target):
    """5 uniform segments of 8 steps, each from the paper's start."""
    build, inner = case
    kernel = build(**target)
    options = kernel._options
    np.testing.assert_array_equal(options.times, uniform_ladder(5))
    assert options.num_steps == (8,) * 5
    assert options.predictor == "gaussian"
    assert kernel._inner == inner
    moment = jnp.linspace(2.0, 1.0, 6)[:, None] * jnp.ones(3)
    frame = Frame(jnp.zeros(0), jnp.ones(0), jnp.zeros(3))
    adapt = AdaptState(*first_adaptation(kernel._method, moment, None, frame))
    expected, _ = paths.plan_segments(options.times, moment, paper_start=True)
    jax.tree.map(np.testing.assert_array_equal, kernel._plan(adapt).segments, expected)


def test_published_setting_with_another_sampler_and_fewer_steps():
    kernel = rtk.RTKMALA.as_published(
        score=MIXTURE, inner=SIMPSON, num_segments=3, num_steps=(2, 1)
    )
    assert kernel._inner == SIMPSON
    assert kernel._options.num_steps == (2, 1, 0)
    assert kernel.guarantee.startswith("approximate")
