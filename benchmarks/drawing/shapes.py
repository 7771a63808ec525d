"""The shapes of the RTK paper with their draws and exact noised densities."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from benchmarks.shared.targets import Target, mixture_target
from numpyro_rtk.noise import noise_variance, signal


class Chessboard:
    """Uniform on the black squares of a 4 x 4 board, blurred a little; unequal weights.

    Noise keeps it a sum of products of differences of normal distribution functions, so
    its density and score are exact at every level.
    """

    event_shape = (2,)

    def __init__(self, seed: int = 0, blur: float = 0.05):
        rng = np.random.default_rng(seed)
        squares = [(i, j) for i in range(4) for j in range(4) if (i + j) % 2 == 0]
        weights = rng.dirichlet(4.0 * np.ones(len(squares)))
        lows = np.array(squares, dtype=float) - 2.0
        centre = weights @ (lows + 0.5)
        variance = weights @ (lows + 0.5 - centre) ** 2 + 1.0 / 12.0 + blur**2
        self.weights = jnp.asarray(weights)
        self.lows, self.blur = jnp.asarray(lows), blur
        self.loc, self.scale = jnp.asarray(centre), jnp.asarray(np.sqrt(variance))

    def log_density(self, x, t):
        z = (x - self.loc) / self.scale
        lows = signal(t) * (self.lows - self.loc) / self.scale
        highs = signal(t) * (self.lows + 1.0 - self.loc) / self.scale
        sd = jnp.sqrt((signal(t) * self.blur / self.scale) ** 2 + noise_variance(t))
        inside = _log_interval((lows - z) / sd, (highs - z) / sd)
        log_height = -jnp.log(highs - lows)
        by_square = jnp.log(self.weights) + jnp.sum(inside + log_height, axis=-1)
        return jax.nn.logsumexp(by_square) - jnp.sum(jnp.log(self.scale))

    def score(self, x, t):
        return self.log_density_and_score(x, t)[1]

    def log_density_and_score(self, x, t):
        return jax.value_and_grad(self.log_density)(x, t)

    def sample(self, key, shape):
        keys = jr.split(key, 3)
        chosen = jr.categorical(keys[0], jnp.log(self.weights), shape=shape)
        corner = self.lows[chosen] + jr.uniform(keys[1], (*shape, 2))
        return corner + self.blur * jr.normal(keys[2], (*shape, 2))

    def assign(self, x):
        return np.argmin(
            np.max(np.abs(x[:, None] - np.asarray(self.lows) - 0.5), axis=-1), axis=1
        )


def _log_interval(low, high):
    """``log(Phi(high) - Phi(low))`` without cancellation in either tail."""
    flip = low > 0
    low, high = jnp.where(flip, -high, low), jnp.where(flip, -low, high)
    log_high = jax.scipy.stats.norm.logcdf(high)
    log_low = jax.scipy.stats.norm.logcdf(low)
    return log_high + jnp.log1p(-jnp.exp(jnp.minimum(log_low - log_high, -1e-6)))


def circle(dim: int = 10, components: int = 12) -> Target:
    """The RTK paper's circle (variance .007), equal weights as there."""
    weights = np.full(components, 1.0 / components)
    return _on_circle("equal circle, 10 d", weights, dim)


def unequal_circle(dim: int = 10, components: int = 12, seed: int = 0) -> Target:
    """The RTK paper's circle (variance .007) with unequal weights."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(2.0 * np.ones(components))
    return _on_circle("circle, 10 d", weights, dim)


def _on_circle(name: str, weights: np.ndarray, dim: int) -> Target:
    components = len(weights)
    angles = 2.0 * np.pi * np.arange(components) / components
    means = np.zeros((components, dim))
    means[:, 0], means[:, 1] = np.cos(angles), np.sin(angles)
    covariances = np.broadcast_to(0.007 * np.eye(dim), (components, dim, dim))
    return mixture_target(name, weights, means, covariances)


def spiral(components: int = 90, pieces: int = 6, sd: float = 0.1) -> Target:
    """Two turns of a spiral: equal Gaussians at equal distances along it.

    They lie closer than they are wide, which leaves no ripple. Its modes are pieces of
    equal length, a point's that of the nearest component.
    """
    angle = np.linspace(0.0, 4.0 * np.pi, 20_001)
    radius = 0.3 + 1.7 * angle / angle[-1]
    curve = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    steps = np.linalg.norm(np.diff(curve, axis=0), axis=-1)
    length = np.concatenate([[0.0], np.cumsum(steps)])
    at = length[-1] * (np.arange(components) + 0.5) / components
    means = np.stack([np.interp(at, length, part) for part in curve.T], axis=-1)
    mixture = mixture_target(
        "spiral, 2 d",
        np.full(components, 1.0 / components),
        means,
        np.broadcast_to(sd**2 * np.eye(2), (components, 2, 2)),
    )
    piece = lambda x: mixture.assign(x) * pieces // components
    return mixture._replace(weights=np.full(pieces, 1.0 / pieces), assign=piece)


def chessboard() -> Target:
    board = Chessboard()
    return Target("chessboard, 2 d", board, np.asarray(board.weights), board.assign)
