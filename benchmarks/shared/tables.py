"""Tables of a benchmark as Markdown and CSV, with what is needed to run it again."""

import csv
import pathlib
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version

import jax

OUTPUT = pathlib.Path(__file__).parents[1] / "output"


def command() -> str:
    """What was typed to run this, from the repository root."""
    spec = sys.modules["__main__"].__spec__
    module = "benchmarks" if spec is None else spec.name
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def versions(*more: str) -> str:
    """Python, the machine, and the packages that decide the figures."""
    packages = ("numpyro", "jax", "equinox", *more)
    named = ", ".join(f"{name} {version(name)}" for name in packages)
    return (
        f"Python {platform.python_version()}, {named}; {jax.devices()[0].platform} "
        f"({platform.machine()})"
    )


class Table:
    """Rows that are printed as they come, and kept in ``NAME.md`` and ``NAME.csv``.

    The files are written anew after every row: what a run has produced is not lost when
    it is stopped.

    Args:
        name: of the files, in ``benchmarks/output``.
        columns: their titles.
        more: packages whose versions matter, besides the usual ones.
    """

    def __init__(self, name: str, columns: Sequence[str], more: Sequence[str] = ()):
        self.columns, self.rows = list(columns), []
        OUTPUT.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.source = f"`{command()}`; {versions(*more)}"
        print(self.source)
        print(self._line(self.columns), self._line(["---"] * len(columns)), sep="\n")

    def add(self, *values: str | float) -> None:
        """A row; numbers are shown with three figures."""
        assert len(values) == len(self.columns), (values, self.columns)
        self.rows.append(values)
        print(self._line([shown(value) for value in values]), flush=True)
        self._write()

    @property
    def records(self) -> list[dict[str, str | float]]:
        """The rows as dictionaries by column."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def _write(self) -> None:
        lines = [self.columns, ["---"] * len(self.columns)]
        lines += [[shown(value) for value in row] for row in self.rows]
        text = "\n".join(self._line(line) for line in lines)
        markdown = OUTPUT / f"{self.name}.md"
        markdown.write_text(f"{self.source}\n\n{text}\n")
        with (OUTPUT / f"{self.name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(self.columns)
            writer.writerows(self.rows)

    @staticmethod
    def _line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"


def shown(value: str | float) -> str:
    """A number with three significant figures; text as it is."""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    if value != value:
        return "-"
    return f"{value:.3f}" if 0.001 <= abs(value) < 1000 else f"{value:.3g}"


def with_error(value: float, error: float, digits: int = 3) -> str:
    """``1.234 +- 0.056``."""
    return f"{value:.{digits}f} +- {error:.{digits}f}"
