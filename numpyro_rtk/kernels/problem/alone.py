"""A density by itself (``score=``) is a model with one site."""

from typing import Any

import numpyro

from numpyro_rtk.density import check_density
from numpyro_rtk.prior import LearnedPrior

__all__ = ["Alone"]


class Alone:
    """The model: one draw of the density; whatever arguments it is called with.

    Args:
        density: as a kernel's ``score``.

    Raises:
        TypeError, ValueError: of ``score``, where it is no density of x alone.
    """

    site = "draw"

    def __init__(self, density: Any):
        check_density("score", density)
        self.prior = _OfArrays(density)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Sample the site."""
        numpyro.sample(self.site, self.prior)


class _OfArrays(LearnedPrior):
    """The law of the density's own arrays, whatever sites and supports they stand for."""

    def __init__(self, density: Any):
        super().__init__(density)
        self._spec = None
        self._event_shape = tuple(density.event_shape)
