"""Figures; matplotlib is imported inside the functions."""

from typing import Any

import numpy as np

__all__ = ["plot_prior_check", "plot_score_check"]

_MOST_POINTS = 2000  # in one panel


def plot_prior_check(check: Any) -> Any:
    """Draws beside held-out rows on their two principal axes, and their log densities.

    Args:
        check: what :func:`numpyro_rtk.check_prior` returned.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.2), layout="constrained")
    panels = figure.subplots(1, 3)
    mean, spread = check.rows.mean(axis=0), check.rows.std(axis=0)
    _, axes = np.linalg.eigh(np.atleast_2d(np.cov(((check.rows - mean) / spread).T)))
    on_axes = lambda x: ((x - mean) / spread) @ axes[:, ::-1]
    rows, draws = on_axes(check.rows), on_axes(check.draws)
    if rows.shape[1] == 1:
        rows, draws = (np.column_stack([x, np.zeros(len(x))]) for x in (rows, draws))
    for panel, points, title in (
        (panels[0], rows, "held-out rows"),
        (panels[1], draws, "the model's own draws"),
    ):
        x, y = points[:_MOST_POINTS, :2].T
        panel.plot(x, y, ".", markersize=2, alpha=0.4)
        panel.set(title=title, xlabel="principal axis 1", ylabel="principal axis 2")
    panels[1].set(xlim=panels[0].get_xlim(), ylim=panels[0].get_ylim())
    both = np.concatenate([check.log_density, check.draws_log_density])
    low, high = np.quantile(both, 0.002), both.max()
    bins = np.linspace(float(low), float(high), 40).tolist()
    for values, label in (
        (check.log_density, "held-out rows"),
        (check.draws_log_density, "draws"),
    ):
        panels[2].hist(values, bins, density=True, histtype="step", label=label)
    panels[2].set(title="log density", xlabel="nats")
    panels[2].legend(loc="upper left", fontsize="small")
    return figure


def plot_score_check(check: Any) -> Any:
    """Error of the predicted noise by noise level, and the best Gaussian's.

    Args:
        check: what :func:`numpyro_rtk.check_prior` returned of a score alone.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.0, 3.2), layout="constrained")
    panel = figure.subplots()
    panel.plot(check.noise, check.error, "o-", label="the score")
    panel.plot(check.noise, check.gaussian, "--", label="the best Gaussian")
    panel.plot(check.noise, check.error - check.excess, ":", label="linearly corrected")
    panel.set(xscale="log", xlabel="noise / signal", ylabel="error of the noise")
    panel.legend(fontsize="small")
    return figure
