"""``rtk.log_evidence`` of numbers: what its error makes of chains and population.

Of real runs it is looked at in ``test_exchange``.
"""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

import numpyro_rtk as rtk
from numpyro_rtk.diagnostics import evidence


class _Found(NamedTuple):
    """What of the population's findings the evidence reads."""

    log_evidence: float
    log_evidence_error: float
    num_ancestors: int


def _bridge_run(by_chain, found, found_error, num_draws=100, num_ancestors=200):
    """A run of one edge whose chains estimate these log evidences; no error in a chain."""
    down = np.exp(np.asarray(by_chain))[:, None, None] * np.ones((1, num_draws, 1))
    fields = {
        "bridge_down": down,
        "bridge_up": np.ones_like(down),
        "swap_accept_prob": np.ones_like(down),
    }
    settings = SimpleNamespace(log_ratio=np.zeros(1))
    shared = SimpleNamespace(
        settings=settings, found=_Found(found, found_error, num_ancestors)
    )
    return SimpleNamespace(
        get_extra_fields=lambda group_by_chain: fields,
        last_state=SimpleNamespace(shared=shared, log_offset=np.zeros(2)),
        sampler=None,
    )


@pytest.mark.parametrize(
    ("found", "found_error", "error"),
    [
        (-1.0, 0.2, 0.1),  # the same: that of the chains
        (-1.4, 0.2, 0.1),  # within twice the population's error
        (-0.6, 0.2, 0.1),
        (-2.0, 0.2, 0.1),  # the run has found more
        (0.0, 0.2, np.hypot(0.1, 0.6)),  # 1 nat less, of which .4 are its error
        (0.0, 0.0, np.hypot(0.1, 1.0)),
        (np.nan, 0.2, 0.1),  # a population that knows nothing
        (-np.inf, 0.2, 0.1),
    ],
)
def test_the_evidences_error_grows_by_what_the_population_says(
    found, found_error, error
):
    """Chains at -1.1 and -.9: between them an error of .1."""
    run = _bridge_run([-1.1, -0.9], found, found_error)
    value, own = rtk.log_evidence(run)
    np.testing.assert_allclose([value, own], [-1.0, error], rtol=1e-5)


def test_a_population_of_few_ancestors_is_not_compared_with():
    assert rtk.log_evidence(_bridge_run([-1.1, -0.9], 5.0, 0.1, num_ancestors=12))[
        1
    ] == pytest.approx(0.1)


def test_the_evidence_is_unknown_where_nothing_passes():
    run = _bridge_run([-np.inf, -0.9], -1.0, 0.2)
    assert rtk.log_evidence(run)[1] == np.inf


def test_estimates_far_apart_have_a_large_error_not_none():
    """Of particles: one draw's estimate is 1e5 nats above, another as far below."""

    class Run:
        def get_extra_fields(self, group_by_chain):
            estimate = np.zeros((4, 50))
            estimate[0, 3], estimate[2, 7] = 1e5, -1e5
            return {"log_evidence": estimate, "sample_size": estimate}

    value, error = rtk.log_evidence(Run())
    assert np.isfinite(value)
    assert error > evidence.UNKNOWN
