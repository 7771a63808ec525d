"""Independent subspaces, and the products of mixtures over them that a fit starts from."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from scipy.stats import special_ortho_group

import numpyro_rtk as rtk
from numpyro_rtk.gaussian_product import NoisedProduct
from numpyro_rtk.gaussians import GaussianMixture, noised_mixture
from numpyro_rtk.training.base import fit_base
from numpyro_rtk.training.fit import fit
from numpyro_rtk.training.subspaces import independent_subspaces

AXES = special_ortho_group(3, seed=1).rvs()
SUBSPACES = [AXES[:, :2], AXES[:, 2:]]
WIDE = (
    np.array([0.2, 0.5, 0.3]),
    np.array([[-1.5, 0.5], [0.3, -1.0], [1.2, 1.2]]),
    np.array([[[0.1, 0.03], [0.03, 0.1]], [[0.1, -0.05], [-0.05, 0.2]], np.eye(2) / 9]),
)
NARROW = (np.array([0.3, 0.7]), np.array([[-1.4], [0.6]]), np.full((2, 1, 1), 0.08))
TRUTHS = [GaussianMixture(*WIDE), GaussianMixture(*NARROW)]


def log_density(z, t):
    parts = [p.log_density(z @ u, t) for p, u in zip(TRUTHS, SUBSPACES, strict=True)]
    return sum(parts)


def rows(num, seed):
    keys = jr.split(jr.key(seed))
    parts = [p.sample(key, (num,)) for p, key in zip(TRUTHS, keys, strict=True)]
    return np.asarray(jnp.concatenate(parts, axis=1) @ AXES.T, np.float64)


def test_subspaces_are_found_again():
    """4,000 rows: an axis is off by about 1 / sqrt(4000) = .016 for each other one.

    Allowed is ten times the square of that, 3 * .016**2, of an axis outside its own.
    """
    found = independent_subspaces(rows(4000, 1))
    assert sorted(u.shape[1] for u in found) == [1, 2]
    for basis in found:
        own = SUBSPACES[0] if basis.shape[1] == 2 else SUBSPACES[1]
        outside = 1.0 - np.sum((own.T @ basis) ** 2, axis=0)
        assert outside.max() < 10 * 3 * 0.016**2


def test_fit_base_takes_the_product_and_is_right():
    """24 parameters and 3 angles from 4,000 rows: off by sqrt(27 / 4000) = .08.

    Twice that is allowed; a single Gaussian, the control, is off by more than .4.
    """
    z, held_out, fresh = rows(4000, 1), rows(500, 2), jnp.asarray(rows(4000, 3))
    base = fit_base(z, held_out, None).as_base()
    assert isinstance(base, NoisedProduct)
    exact = log_density(fresh, 0.0)
    error = lambda base: float(
        jnp.std(jax.vmap(base.log_density, in_axes=(0, None))(fresh, 0.0) - exact)
    )
    assert error(base) < 0.16
    assert error(noised_mixture(np.ones(1), z.mean(0)[None], np.cov(z.T)[None])) > 0.4


def test_what_depends_stays_together():
    """A ring: uncorrelated coordinates that are not independent; and too few rows."""
    rng = np.random.default_rng(0)
    angle = rng.uniform(0.0, 2.0 * np.pi, 2000)
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert len(independent_subspaces(ring + 0.1 * rng.normal(size=ring.shape))) == 1
    assert len(independent_subspaces(rng.normal(size=(30, 3)))) == 1
    flat = rng.normal(size=(2000, 2)) @ rng.normal(size=(2, 3))
    assert len(independent_subspaces(flat)) == 1


def test_a_file_keeps_it(tmp_path):
    samples = rows(4000, 1)
    model, _ = fit(jr.key(0), samples, num_steps=2, batch_size=16, progress_bar=False)
    assert isinstance(model.base, NoisedProduct)
    rtk.save(tmp_path / "product.rtk", model)
    again = rtk.load(tmp_path / "product.rtk")
    x = jnp.asarray(rows(20, 5), jnp.float32)
    same = np.testing.assert_array_equal
    same(again.log_density(x, 0.1), model.log_density(x, 0.1))
