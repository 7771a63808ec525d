"""The base that a fit starts from: one Gaussian, a mixture, or a product of mixtures."""

import numpy as np

from numpyro_rtk.training.mixture import (
    FoundMixture,
    best_mixture,
    fit_mixture,
    is_plain_gaussian,
)
from numpyro_rtk.training.subspaces import FoundProduct, fit_product

__all__ = ["LARGEST_DIM", "MAX_ROWS", "Found", "fit_base"]

Found = FoundMixture | FoundProduct

LARGEST_DIM = 128  # beyond it full covariances cost more than the network
MAX_ROWS = 50_000  # of the rows that it is fitted to
_FEW_DIMS = 3  # in more, a curved surface has no use for a few dozen Gaussians


def fit_base(
    z: np.ndarray, held_out: np.ndarray, num_components: int | None
) -> Found | None:
    """The simplest base that the held-out rows do not ask to be richer.

    Args:
        z: standardised rows, ``(n, dim)``.
        held_out: standardised rows that were not in ``z``, ``(m, dim)``.
        num_components: of a mixture; None for what the held-out rows ask for.

    Returns:
        The density that ``as_base`` follows through the noise, and ``refit`` fits to
        other rows; None where it is to be one Gaussian.

    Raises:
        ValueError: where there are too few rows for ``num_components``.
    """
    if num_components == 1:
        return None
    if num_components is not None:
        return fit_mixture(z, held_out, num_components)
    found = best_mixture(z, held_out, curved=z.shape[1] <= _FEW_DIMS)
    product = fit_product(z, held_out, found.log_density(held_out))
    if product is not None:
        return product
    return None if is_plain_gaussian(found) else found
