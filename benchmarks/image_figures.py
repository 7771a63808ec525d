"""Figures of ``images.py``: measures against evaluations, and sheets of samples."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from figures import save

__all__ = ["NUM_SHOWN", "draw_curves", "draw_sheets"]

SHEET = (8, 5)
NUM_SHOWN = SHEET[0] * SHEET[1]
MARKERS = "osD^v<>PXh"


def draw_curves(
    name: str, rows: Sequence[Mapping], measures: Sequence[str], floors: Sequence[float]
) -> None:
    """A panel per measure, a line per method and network; the floor is dotted.

    Args:
        name: of the file.
        rows: of the table, as dictionaries by column.
        measures: columns of what is shown.
        floors: of each measure, what as many real images have.
    """
    figure, axes = plt.subplots(
        1, len(measures), figsize=(4.2 * len(measures) + 2.6, 4.2), layout="constrained"
    )
    lines = list(dict.fromkeys((row["method"], row["network"]) for row in rows))
    for axis, measure, floor in zip(axes, measures, floors, strict=True):
        axis.axhline(floor, color="0.4", linestyle=":", label="training images")
        for i, (method, network) in enumerate(lines):
            points = [
                row
                for row in rows
                if (row["method"], row["network"]) == (method, network)
            ]
            axis.plot(
                [row["evaluations"] for row in points],
                [row[measure] for row in points],
                color=f"C{i % 10}",
                linestyle="-" if method.startswith("RTK") else "--",
                marker=MARKERS[i % len(MARKERS)],
                markersize=4,
                linewidth=1.2,
                label=method + (", energy" if network.startswith("Energy") else ""),
            )
        axis.set(xscale="log", yscale="log", xlabel="evaluations", ylabel=measure)
        axis.set_xticks([5, 10, 20, 40, 80], ["5", "10", "20", "40", "80"])
        axis.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside right center",
        fontsize=8,
        frameon=False,
    )
    save(figure, name)


def draw_sheets(
    name: str, sheets: Mapping[str, np.ndarray], num_columns: int = 6
) -> None:
    """``NUM_SHOWN`` images ``(n, H, W)`` of each sheet."""
    (rows, columns), num_rows = SHEET, -(-len(sheets) // num_columns)
    figure, axes = plt.subplots(
        num_rows,
        num_columns,
        figsize=(1.9 * num_columns, 3.2 * num_rows),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (title, images) in zip(axes.flat, sheets.items(), strict=False):
        shown = np.clip(images[:NUM_SHOWN], 0.0, 1.0)
        framed = np.pad(shown, [(0, 0), (1, 0), (1, 0)], constant_values=0.5)
        height, width = framed.shape[1:]
        grid = framed.reshape(rows, columns, height, width).transpose(0, 2, 1, 3)
        sheet = grid.reshape(rows * height, columns * width)
        axis.imshow(sheet, cmap="gray_r", vmin=0.0, vmax=1.0)
        axis.set_title(title, fontsize=8)
    save(figure, name)
