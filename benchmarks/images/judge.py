"""Draws of images against images, as a small classifier sees both.

The Fréchet distance of two Gaussians fitted to features, of draws and of all training
images (FID: Heusel et al., 2017, arXiv 1706.08500, with the last hidden layer of a
classifier trained here in the place of Inception), and the shares of the classes.
"""

import numpy as np
from sklearn.neural_network import MLPClassifier

from benchmarks.images.data import Images

__all__ = ["Judge"]

Moments = tuple[np.ndarray, np.ndarray]


class Judge:
    """A classifier, and what it sees in the training images."""

    def __init__(self, images: Images):
        self.classifier = MLPClassifier(
            (128, 32),
            batch_size=500,
            learning_rate_init=3e-3,
            early_stopping=True,
            n_iter_no_change=5,
            random_state=0,
        )
        self.classifier.fit(_flat(images.train), images.train_classes)
        self.accuracy = self.classifier.score(_flat(images.test), images.test_classes)
        features, classes = self._look(images.train)
        self.moments, self.shares = _moments(features), self._shares(classes)

    def score(self, draws: np.ndarray) -> tuple[float, float]:
        """Of draws ``(n, H, W)``: Fréchet distance, total variation of the classes.

        Infinite for draws that are not finite; pixels are cut to [0, 1].
        """
        if not np.isfinite(draws).all():
            return np.inf, np.inf
        features, classes = self._look(draws)
        tv = 0.5 * np.abs(self._shares(classes) - self.shares).sum()
        return _frechet(_moments(features), self.moments), float(tv)

    def floor(
        self, images: np.ndarray, num: int, repeats: int = 20
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and sd of :meth:`score` over samples of ``num`` of the images."""
        rng = np.random.default_rng(3)
        sample = lambda: images[rng.choice(len(images), num, replace=False)]
        scores = np.array([self.score(sample()) for _ in range(repeats)])
        return scores.mean(axis=0), scores.std(axis=0)

    def _look(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Last hidden layer, ``(n, 32)``, and index of the class, ``(n,)``."""
        *hidden, (weights, bias) = zip(
            self.classifier.coefs_, self.classifier.intercepts_, strict=True
        )
        h = np.clip(_flat(images), 0.0, 1.0)
        for w, b in hidden:
            h = np.maximum(h @ w + b, 0.0)
        return h, np.argmax(h @ weights + bias, axis=1)

    def _shares(self, classes: np.ndarray) -> np.ndarray:
        num = len(self.classifier.classes_)
        return np.bincount(classes, minlength=num) / len(classes)


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)


def _moments(x: np.ndarray) -> Moments:
    return x.mean(axis=0), np.cov(x, rowvar=False)


def _frechet(one: Moments, two: Moments) -> float:
    """``|m - n|**2 + tr(C + D - 2 (C D)**.5)``."""
    (m, c), (n, d) = one, two
    roots = np.sqrt(np.maximum(np.linalg.eigvals(c @ d).real, 0.0))
    return float(np.sum((m - n) ** 2) + np.trace(c + d) - 2.0 * roots.sum())
