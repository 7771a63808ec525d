"""Figures that several benchmarks draw: measures against cost, and clouds of draws."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, NullLocator
from tables import OUTPUT

__all__ = ["curves", "histograms", "save"]

MARKERS = "osD^v<>Phd"
TICKS = tuple(5 * 2**i for i in range(12))


def curves(
    name: str,
    rows: Sequence[Mapping],
    panels: str,
    lines: str,
    x: str,
    measures: Mapping[str, str],
    floors: Mapping[str, Mapping[str, float]],
) -> None:
    """A row of panels per measure, a column per value of ``panels``, in ``NAME.png``.

    Args:
        name: of the file, in ``benchmarks/output``.
        rows: of a table, as dictionaries by column.
        panels: column whose values are the panels.
        lines: column whose values are the lines, in order of appearance.
        x: column of the horizontal axis, on a log scale.
        measures: columns, each with its vertical scale: ``"linear"``, ``"log"``, or
            ``"symlog"``, which is linear below .1.
        floors: by panel and measure, what an i.i.d. sample has: a dotted line.
    """
    across, along = _values(rows, panels), _values(rows, lines)
    figure, axes = plt.subplots(
        len(measures),
        len(across),
        figsize=(3.2 * len(across), 2.4 * len(measures) + 0.8),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for (measure, scale), row in zip(measures.items(), axes, strict=True):
        row[0].set_ylabel(measure)
        for panel, axis in zip(across, row, strict=True):
            axis.axhline(floors[panel][measure], color="0.4", linestyle=":", zorder=0)
            for i, line in enumerate(along):
                points = [r for r in rows if r[panels] == panel and r[lines] == line]
                values = [[r[key] for r in points] for key in (x, measure)]
                axis.plot(*values, label=line, **_style(i))
            axis.set_xscale("log")
            _set_vertical(axis, scale)
    costs = [r[x] for r in rows]
    ticks = [t for t in TICKS if min(costs) <= t <= 1.1 * max(costs)]
    for panel, top, bottom in zip(across, axes[0], axes[-1], strict=True):
        top.set_title(panel)
        bottom.set_xlabel(x)
        bottom.set_xticks(ticks, [str(t) for t in ticks])
        bottom.minorticks_off()
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(across) + 1,
        frameon=False,
    )
    save(figure, name)


def histograms(
    name: str, draws: Mapping[str, Mapping[str, np.ndarray]], bins: int = 80
) -> None:
    """Two-dimensional histograms of the first two coordinates, in ``NAME.png``.

    Args:
        name: of the file, in ``benchmarks/output``.
        draws: by row and column, draws ``(n, dim)``; a row's first column sets the frame
            and the colours of all.
        bins: of each axis.
    """
    columns = list(next(iter(draws.values())))
    figure, axes = plt.subplots(
        len(draws),
        len(columns),
        figsize=(1.7 * len(columns), 1.8 * len(draws)),
        squeeze=False,
        layout="constrained",
    )
    for (row_name, by_column), row in zip(draws.items(), axes, strict=True):
        first = by_column[columns[0]][:, :2]
        margin = 0.15 * np.ptp(first, axis=0)
        frame = np.stack([first.min(axis=0) - margin, first.max(axis=0) + margin], -1)
        counts = np.histogram2d(*first.T, bins=bins, range=frame, density=True)[0]
        for column, axis in zip(columns, row, strict=True):
            axis.set(xticks=[], yticks=[], aspect="equal")
            if column in by_column:
                axis.hist2d(
                    *by_column[column][:, :2].T,
                    bins=bins,
                    range=frame,
                    density=True,
                    cmap="magma",
                    vmax=np.quantile(counts, 0.995),
                )
            axis.set_xlim(frame[0])
            axis.set_ylim(frame[1])
        row[0].set_ylabel(row_name)
    for column, axis in zip(columns, axes[0], strict=True):
        axis.set_title(column.replace(", ", ",\n"), fontsize=9)
    save(figure, name)


def _style(i: int) -> dict:
    return {
        "color": f"C{i % 10}",
        "marker": MARKERS[i % len(MARKERS)],
        "markersize": 4,
        "linewidth": 1.2,
    }


def _set_vertical(axis, scale: str) -> None:
    axis.set_yscale(scale, **({"linthresh": 0.1} if scale == "symlog" else {}))
    if scale == "log":
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_minor_locator(NullLocator())
    if scale != "linear":
        axis.yaxis.set_major_formatter("{x:g}")


def _values(rows: Sequence[Mapping], column: str) -> list:
    return list(dict.fromkeys(row[column] for row in rows))


def save(figure, name: str) -> None:
    """Into ``NAME.png`` of the output, and close it."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    path = OUTPUT / f"{name}.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    print(f"wrote {path.relative_to(OUTPUT.parent.parent)}")
