"""What a fit has reached, and one safe file that it can be resumed from."""

import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_rtk._file import read_arrays, write_arrays
from numpyro_rtk.training.loop import TrainState

__all__ = ["Progress", "load_progress", "save_progress"]

_FORMAT = "numpyro_rtk training checkpoint"
_RECORD = ("step", "loss", "validation_loss", "wall_time")


class Progress(NamedTuple):
    """A fit between two evaluations.

    Attributes:
        state: of the optimisation.
        best_weights: those of the best validation loss so far.
        best_loss: that loss.
        best_step: when it was reached.
        since_best: evaluations since then.
        record: lists ``step``, ``loss``, ``validation_loss``, ``wall_time``.
    """

    state: TrainState
    best_weights: Any
    best_loss: float
    best_step: int
    since_best: int
    record: dict[str, list]

    @classmethod
    def start(cls, state: TrainState, loss: float) -> "Progress":
        """Before the first step; the untrained weights take part."""
        record = {name: [] for name in _RECORD}
        return cls(state, state.average, loss, 0, 0, record)

    @property
    def done(self) -> int:
        """Steps taken."""
        return self.record["step"][-1] if self.record["step"] else 0

    def advanced(self, state: TrainState, **entry: float) -> "Progress":
        """After one more evaluation with these entries of the record."""
        record = {name: [*values, entry[name]] for name, values in self.record.items()}
        progress = self._replace(state=state, record=record)
        if entry["validation_loss"] < self.best_loss:
            return progress._replace(
                best_weights=state.average,
                best_loss=entry["validation_loss"],
                best_step=int(entry["step"]),
                since_best=0,
            )
        return progress._replace(since_best=self.since_best + 1)


def save_progress(
    path: str | os.PathLike, fingerprint: dict[str, Any], progress: Progress
) -> None:
    """Write the progress of the fit with this fingerprint, replacing an earlier one."""
    header = {
        "format": _FORMAT,
        "version": 1,
        "fingerprint": fingerprint,
        "best_step": progress.best_step,
        "since_best": progress.since_best,
    }
    numbers = [("best_loss", np.float64(progress.best_loss))]
    numbers += [
        (name, np.asarray(progress.record[name], np.float64)) for name in _RECORD
    ]
    leaves = jax.tree.leaves((progress.state, progress.best_weights))
    named = [(str(i), leaf) for i, leaf in enumerate(leaves)]
    write_arrays(path, header, [*numbers, *named], argument="checkpoint")


def load_progress(
    path: str | os.PathLike, fingerprint: dict[str, Any], start: Progress
) -> Progress:
    """The progress in the file; ``start`` where there is no file yet.

    Args:
        path: of the file.
        fingerprint: of the fit that wants to go on.
        start: its progress before the first step, for the structure.

    Raises:
        ValueError: for a damaged file, and for one that another fit has written.
    """
    try:
        header, arrays = read_arrays(
            path,
            what="checkpoint",
            file_format=_FORMAT,
            versions=(1,),
            kinds={"fingerprint": dict, "best_step": int, "since_best": int},
        )
    except FileNotFoundError:
        return start
    theirs = header["fingerprint"]
    differing = sorted(
        name
        for name in {*theirs, *fingerprint}
        if theirs.get(name) != fingerprint.get(name)
    )
    if differing:
        raise ValueError(
            f"`checkpoint` must be of the same fit; {path} was written by one that "
            f"differs in {differing}. Call `fit` as then, delete the file, or give "
            "another path."
        )
    numbers, arrays = arrays[: 1 + len(_RECORD)], arrays[1 + len(_RECORD) :]
    tree = (start.state, start.best_weights)
    leaves, structure = jax.tree.flatten(tree)
    if [np.shape(leaf) for leaf in leaves] != [array.shape for array in arrays]:
        raise ValueError(f"{path} is damaged: its arrays are not those of this fit.")
    filled = [
        jnp.asarray(a, leaf.dtype) for a, leaf in zip(arrays, leaves, strict=True)
    ]
    state, best_weights = jax.tree.unflatten(structure, filled)
    record = {
        name: values.tolist() for name, values in zip(_RECORD, numbers[1:], strict=True)
    }
    record["step"] = [int(step) for step in record["step"]]
    return Progress(
        state,
        best_weights,
        float(numbers[0]),
        header["best_step"],
        header["since_best"],
        record,
    )
