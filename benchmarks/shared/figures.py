"""Figures: measures against cost, clouds of draws, sheets of images."""

import math
from collections.abc import Mapping, Sequence

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from benchmarks.shared.tables import OUTPUT

__all__ = ["NUM_SHOWN", "curves", "histograms", "sheets"]

MARKERS = "osD^v<>PXhd"  # with ten colours: 110 different lines
TICKS = tuple(5 * 2**i for i in range(8))  # as budgets are, beyond them 1, 2, 5
NUM_ACROSS = 4  # panels of one measure
SHEET = (8, 5)  # rows and columns of images
NUM_SHOWN = math.prod(SHEET)


def curves(
    name: str,
    rows: Sequence[Mapping],
    panels: str,
    lines: str,
    x: str,
    measures: Mapping[str, str],
    floors: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Measures against cost, in ``NAME.png``.

    Of several measures each has a row of panels, with a column per value of ``panels``;
    the panels of a single one follow each other, four in a row, each with scales of its
    own.

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
    names, along = _values(rows, panels), _values(rows, lines)
    places = [(measure, panel) for measure in measures for panel in names]
    is_single = len(measures) == 1
    across = min(NUM_ACROSS, len(names)) if is_single else len(names)
    down = -(-len(places) // across)
    width = max(3.2 * across, 6.4)
    figure, axes = plt.subplots(
        down,
        across,
        figsize=(width, 2.4 * down + 1.2),
        sharex=not is_single,
        sharey=False if is_single else "row",
        squeeze=False,
        layout="constrained",
    )
    labelled = {}
    for axis, (measure, panel) in zip(axes.flat, places, strict=False):
        if floors is not None:
            axis.axhline(floors[panel][measure], color="0.4", linestyle=":", zorder=0)
        for i, line in enumerate(along):
            points = [r for r in rows if r[panels] == panel and r[lines] == line]
            if points:
                values = [[r[key] for r in points] for key in (x, measure)]
                (labelled[line],) = axis.plot(*values, **_style(i))
        _set_scales(axis, measures[measure])
    for axis in axes.flat[len(places) :]:
        axis.set_axis_off()
    for axis, panel in zip(axes.flat, names, strict=False):
        axis.set_title(panel)
    for row, measure in zip(axes, [*measures] * down, strict=False):
        row[0].set_ylabel(measure)
    for axis in axes.flat if is_single else axes[-1]:
        axis.set_xlabel(x)
    labels = [line for line in along if line in labelled]
    figure.legend(
        [labelled[line] for line in labels],
        labels,
        loc="outside lower center",
        ncols=int(width // 2.4),
        frameon=False,
    )
    _save(figure, name)


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
    _save(figure, name)


def sheets(name: str, images: Mapping[str, np.ndarray], num_columns: int = 6) -> None:
    """The first ``NUM_SHOWN`` images ``(n, H, W)`` of each sheet, in ``NAME.png``.

    They are dark on light; pixels are cut to [0, 1].
    """
    num_columns = min(num_columns, len(images))
    num_rows = -(-len(images) // num_columns)
    figure, axes = plt.subplots(
        num_rows,
        num_columns,
        figsize=(1.9 * num_columns, 3.2 * num_rows),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (title, several) in zip(axes.flat, images.items(), strict=False):
        shown = np.clip(several[:NUM_SHOWN], 0.0, 1.0)
        framed = np.pad(shown, [(0, 0), (1, 0), (1, 0)], constant_values=0.5)
        height, width = framed.shape[1:]
        grid = framed.reshape(*SHEET, height, width).transpose(0, 2, 1, 3)
        sheet = grid.reshape(SHEET[0] * height, SHEET[1] * width)
        axis.imshow(sheet, cmap="gray_r", vmin=0.0, vmax=1.0)
        axis.set_title(title, fontsize=8)
    _save(figure, name)


def _style(i: int) -> dict:
    return {
        "color": f"C{i % 10}",
        "marker": MARKERS[i % len(MARKERS)],
        "markersize": 4,
        "linewidth": 1.2,
    }


def _set_scales(axis, vertical: str) -> None:
    axis.set_xscale("log")
    least, largest = axis.get_xlim()
    if largest < 2 * TICKS[-1]:
        axis.set_xticks([tick for tick in TICKS if least <= tick <= largest])
    else:
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set_yscale(vertical, **({"linthresh": 0.1} if vertical == "symlog" else {}))
    if vertical == "log":
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_minor_locator(NullLocator())
    if vertical != "linear":
        axis.yaxis.set_major_formatter("{x:g}")


def _values(rows: Sequence[Mapping], column: str) -> list:
    return list(dict.fromkeys(row[column] for row in rows))


def _save(figure, name: str) -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    path = OUTPUT / f"{name}.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    print(f"wrote {path.relative_to(OUTPUT.parent.parent)}")
