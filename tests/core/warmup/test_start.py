"""Where chains start, and which of two populations is believed."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from numpyro_rtk.core.exchange.modes import Modes
from numpyro_rtk.core.segment import Evaluation
from numpyro_rtk.core.warmup import start
from numpyro_rtk.core.warmup.population import MOST_LEVELS, Descent
from numpyro_rtk.core.warmup.settings import first_settings
from tests.core.tallies import METHOD

DIM = 2


def descent(log_ratio, ancestor, num=4, kept=16):
    """A run as if: of which only what is told matters."""
    levels, n = 8, len(ancestor)
    times = (
        jnp.zeros(levels + 1).at[: num + 1].set(jnp.array([3.0, 1.0, 0.3, 0.05, 0.0]))
    )
    values = 100.0 * jnp.arange(levels + 1)[:, None] + jnp.arange(kept)[None]
    return Descent(
        num=jnp.array(num),
        times=times,
        kept=jnp.stack([values, -values], axis=-1),
        curvature=jnp.ones((levels + 1, DIM)),
        step_size=jnp.float32(0.5),
        log_ratio=jnp.zeros(levels).at[0].set(log_ratio),
        spread=jnp.full(levels, 0.5),
        position=jnp.zeros((n, DIM)),
        evaluation=Evaluation(jnp.zeros(n), jnp.zeros((n, DIM))),
        ancestor=jnp.asarray(ancestor),
        num_evals=jnp.array(1),
    )


def test_chains_start_at_different_particles_of_the_nearest_levels():
    found = descent(0.0, np.arange(100))
    times = jnp.array([0.0, 0.04, 0.35, 1.1, 3.0])
    current = first_settings(
        times, jnp.float32(0.05), jnp.ones((4, DIM)), jnp.ones((4, DIM)), 0.5
    )
    starts = np.asarray(
        jax.vmap(lambda key: start.starts_of(key, found, current))(
            jr.split(jr.key(0), 40)
        )
    )
    assert starts.shape == (40, 5, DIM)
    np.testing.assert_array_equal(starts[..., 0], -starts[..., 1])  # whole particles
    # their level's, which is counted from the top, moved along with the signal
    ratio = np.exp(np.array([0.0, 0.05, 0.3, 1.0, 3.0]) - np.asarray(times))
    level, index = np.divmod(np.round(starts[..., 0] / ratio), 100)
    np.testing.assert_array_equal(level, np.tile([4, 3, 2, 1, 0], (40, 1)))
    assert np.all((index >= 0) & (index < 16))
    # 40 chains of 16 particles: 15 different ones are expected at each level
    assert all(len(np.unique(index[:, k])) >= 10 for k in range(5))
    assert len(np.unique(index, axis=0)) == 40


def stacked(*runs):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs)


def test_a_finer_run_is_taken_where_it_found_clearly_more():
    """Beyond .2 nats and the errors; a run that goes back to one ancestor proves none."""
    many, one = np.arange(1000), np.zeros(1000, int)
    few = np.repeat(np.arange(10), 100)
    cases = [
        (0.0, many, 1.0, many, 1),
        (0.0, many, 0.1, many, 0),
        (0.0, many, -3.0, many, 0),
        (0.0, many, 0.9, one, 0),  # its error is 1
        (0.0, one, 0.9, many, 0),
        (0.0, many, 0.5, few, 0),  # an error of .7
        (-np.inf, many, 0.5, many, 1),
        (0.0, many, -np.inf, many, 0),
        (-np.inf, many, -np.inf, many, 0),
    ]
    for first, its_own, second, other, expected in cases:
        runs = stacked(descent(first, its_own), descent(second, other))
        assert start._found_more(runs) == expected, (first, second)
        weight = start._weights_of(jnp.array([first, second], jnp.float32))
        np.testing.assert_allclose(jnp.sum(weight), 1.0, rtol=1e-5)


def test_few_numbers_are_kept_of_wide_positions():
    """All of usual populations; of 4,096 numbers 64 MB at most; never fewer than 16."""
    assert start._num_kept(1024, 2) == 1024
    assert start._num_kept(1024, 64) == 1024
    assert start._num_kept(256, 128) == 256
    wide = start._num_kept(256, 4096)
    assert 16 < wide * 4096 * (MOST_LEVELS + 1) * 4 / 2**20 <= 64
    assert start._num_kept(256, 10**6) == 16
    assert start._num_kept(8, 10**6) == 8


def two_runs():
    """Of 1,000 particles each, all at 0 and all at 1; the second found three times more."""
    low, high = descent(0.0, np.arange(1000)), descent(np.log(3.0), np.arange(1000))
    return stacked(low, high._replace(position=high.position + 1.0))


def test_particles_of_all_runs_count_by_the_runs_evidence():
    """Every second of 2,000 resampled ones: 750 of the second run, give or take one."""
    runs = two_runs()
    points, found = start._together(jr.key(0), runs, descent(0.0, np.arange(1000)))
    np.testing.assert_allclose(np.sum(points[:, 0]), 750.0, atol=1.0)
    np.testing.assert_allclose(np.mean(found.kept[4]), 0.75, atol=0.07)
    np.testing.assert_array_equal(found.kept[3], runs.kept[0, 3])


def test_findings_are_the_mean_of_the_runs():
    """Evidence (1 + 3) / 2, and 3 / 4 of the particles in the second run's mode."""
    mean = jnp.array([[0.0, 0.0], [1.0, 1.0]])
    one = jnp.full((2, DIM), 0.1)
    log_weight = jnp.log(jnp.full(2, 0.5))
    modes = Modes(log_weight, mean, one**2, one, 1.0 / one, jnp.full(2, 100.0))
    found = start._findings_of(two_runs(), modes, jnp.float32(2.0))
    np.testing.assert_allclose(found.log_evidence, np.log(2.0), rtol=1e-5)
    np.testing.assert_allclose(found.share, [0.25, 0.75], rtol=1e-5)
    # n particles of as many ancestors: n**-.5 of each run's part
    expected = np.hypot(0.25, 0.75) / np.sqrt(1000.0)
    np.testing.assert_allclose(found.log_evidence_error, expected, rtol=1e-4)


def test_first_log_ratios_add_up_to_the_populations_evidence():
    found = descent(2.5, np.arange(100))
    times = np.array([0.0, 0.04, 0.35, 1.1, 3.0])
    method = METHOD._replace(
        times=times, exchange="rtk", dense=False, num_particles=100
    )
    settings = start._settings_from(found, jnp.float32(0.05), method)
    np.testing.assert_allclose(jnp.sum(settings.log_ratio), 2.5, rtol=1e-4)
    # all of it between the top and the level below, where the population found it
    np.testing.assert_array_equal(settings.log_ratio[0], 0.0)
    assert settings.log_ratio[-1] > 0.1
