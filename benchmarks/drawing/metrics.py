"""Distances between a sample and the truth, each with the floor of an i.i.d. sample."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np


class Reference:
    """A large i.i.d. sample of a target, and what an i.i.d. sample of ``n`` scores."""

    def __init__(
        self,
        target,
        n: int,
        size: int = 200_000,
        sets: int = 32,
        num_directions: int = 200,
    ):
        keys = jr.split(jr.key(1234), sets + 1)
        self.target, self.n = target, n
        density = target.density
        self._energy = jax.jit(jax.vmap(lambda y: -density.log_density(y, 0.0)))
        self.sample = np.asarray(density.sample(keys[0], (size,)))
        dim = self.sample.shape[1]
        directions = np.random.default_rng(0).normal(size=(dim, num_directions))
        self.directions = directions / np.linalg.norm(directions, axis=0)
        self.sd = self.sample.std(axis=0)
        grid = (np.arange(n) + 0.5) / n
        self.quantiles = np.quantile(
            (self.sample / self.sd) @ self.directions, grid, axis=0
        )
        self.edges = [np.quantile(c, np.linspace(0, 1, 51)) for c in self.sample.T]
        energies = self._energies(self.sample[:50_000])
        self.energy_mean, self.energy_sd = energies.mean(), energies.std()
        modes = target.assign(self.sample[:50_000])
        self.shares = np.bincount(modes, minlength=len(target.weights)) / len(modes)
        iid = [self.raw(np.asarray(density.sample(k, (n,)))) for k in keys[1:]]
        self.floor = {
            name: float(np.mean([row[name] for row in iid]))
            for name in ("sliced_w2", "marginal_accuracy", "weight_tv", "energy_bias")
        }

    def _energies(self, x):
        return np.asarray(self._energy(jnp.asarray(x)))

    def raw(self, x) -> dict[str, float]:
        x = np.asarray(x)
        projected = np.sort((x / self.sd) @ self.directions, axis=0)
        w2 = np.sqrt(np.mean((projected - self.quantiles) ** 2, axis=0)).mean()
        shares = [
            np.histogram(np.clip(c, e[0], e[-1]), bins=e)[0] / len(x)
            for c, e in zip(x.T, self.edges, strict=True)
        ]
        marginal = 1.0 - 0.5 * np.mean([np.abs(s - 0.02).sum() for s in shares])
        counts = np.bincount(self.target.assign(x), minlength=len(self.shares))
        tv = 0.5 * np.abs(counts / len(x) - self.shares).sum()
        bias = (self._energies(x).mean() - self.energy_mean) / self.energy_sd
        return {
            "sliced_w2": float(w2),
            "marginal_accuracy": float(marginal),
            "weight_tv": float(tv),
            "energy_bias": float(bias),
        }

    def score(self, x) -> dict[str, float]:
        """Sliced W2 over its floor, marginal accuracy below its floor, TV, bias."""
        raw = self.raw(x)
        return {
            "sliced_w2_ratio": raw["sliced_w2"] / self.floor["sliced_w2"],
            "marginal_loss": self.floor["marginal_accuracy"] - raw["marginal_accuracy"],
            "weight_tv": raw["weight_tv"],
            "energy_bias": raw["energy_bias"],
        }
