"""What a fit has reached, and one safe file that it can be resumed from."""

import json
import os
import zlib
from typing import Any, NamedTuple

import jax
import jax.random as jr
import numpy as np

from numpyro_rtk._checks import check_finite_values
from numpyro_rtk._file import (
    Kind,
    as_leaves,
    check_target,
    from_arrays,
    read,
    refusing,
    to_arrays,
    write,
)
from numpyro_rtk.networks.model import EnergyModel, ScoreModel
from numpyro_rtk.training.loop import TrainState, check_state
from numpyro_rtk.training.optimizer import optimizer_fingerprint
from numpyro_rtk.training.options import Options
from numpyro_rtk.training.rows import AbstractRows

__all__ = ["Progress", "fingerprint", "load_progress", "save_progress"]

_KIND = Kind(
    name="training checkpoint",
    argument="checkpoint",
    keys=("fingerprint", "best_step", "since_best"),
    remedy="Delete the file to begin anew, or give another path.",
)
_DTYPES = {
    "step": np.int64,
    "loss": np.float64,
    "validation_loss": np.float64,
    "wall_time": np.float64,
}
_RECORD = tuple(_DTYPES)


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

    def is_over(self, patience: int | None) -> bool:
        """Whether so many evaluations have brought nothing better; None: never."""
        return patience is not None and self.since_best >= patience

    def history(self, patience: int | None) -> dict[str, np.ndarray]:
        """The record as ``fit`` returns it."""
        return {
            **{name: np.asarray(values) for name, values in self.record.items()},
            "best_step": np.asarray(self.best_step),
            "stopped_early": np.asarray(self.is_over(patience)),
        }

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


def fingerprint(
    key: jax.Array,
    rows: AbstractRows,
    model: EnergyModel | ScoreModel,
    weights: Any,
    options: Options,
) -> dict[str, Any]:
    """What two calls must share for one to go on where the other stopped, as JSON.

    Args:
        key: random key of the fit.
        rows: to learn from.
        model: before the first step.
        weights: of its network.
        options: of the fit; those that change no number, as ``devices``, take no part,
            and ``patience`` may be another.
    """
    training, condition = options.training, rows.condition
    optimizer = training.optimizer
    first = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(weights)]
    return {
        "key": np.asarray(jr.key_data(key)).tolist(),
        "samples": rows.identity(),
        "condition": None
        if condition is None
        else [
            list(condition.shape),
            zlib.crc32(np.ascontiguousarray(condition).tobytes()),
        ],
        "network": [type(model.network).__name__, zlib.crc32(b"".join(first))],
        "noise_range": list(model.noise_range),
        "num_steps": options.num_steps,
        "batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "validation_fraction": options.validation_fraction,
        "ema_decay": training.ema_decay,
        "standardise": training.standardise,
        "num_components": training.num_components,
        "optimizer": None
        if optimizer is None
        else optimizer_fingerprint(optimizer, weights),
    }


def save_progress(
    path: str | os.PathLike, fingerprint: dict[str, Any], progress: Progress
) -> None:
    """Write the progress of the fit with this fingerprint, replacing an earlier one."""
    header = {
        "fingerprint": _as_json(fingerprint),
        "best_step": progress.best_step,
        "since_best": progress.since_best,
    }
    numbers = {
        "best_loss": np.asarray(progress.best_loss, _DTYPES["loss"]),
        **{name: np.asarray(progress.record[name], _DTYPES[name]) for name in _RECORD},
    }
    write(path, _KIND, header, {**numbers, **to_arrays(_tree(progress), "checkpoint")})


def load_progress(
    path: str | os.PathLike, fingerprint: dict[str, Any], start: Progress
) -> Progress:
    """The progress in the file; ``start`` where there is no file yet.

    Args:
        path: of the file.
        fingerprint: of the fit that wants to go on.
        start: its progress before the first step, for the structure.

    Raises:
        FileNotFoundError: where the folder of the file does not exist.
        TypeError: for a path that is none.
        ValueError: for a damaged file, for one that another fit has written, and for a
            path where no file can be written.
    """
    if not check_target(path, _KIND).exists():
        return start
    header, arrays = read(path, _KIND)
    _check_fingerprint(path, header["fingerprint"], _as_json(fingerprint))
    with refusing(path, _KIND):
        progress = _progress(header, arrays, start)
        _check_record(progress, fingerprint["num_steps"])
        check_state(progress.state, progress.done)
        for name, leaf in as_leaves(progress.best_weights).items():
            check_finite_values(f"best_weights.{name}", leaf)
    return progress


def _as_json(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """Lists for tuples, and Python's numbers for NumPy's."""
    return json.loads(json.dumps(fingerprint, default=np.generic.item))


def _tree(progress: Progress) -> dict[str, Any]:
    return {"state": progress.state, "best_weights": progress.best_weights}


def _check_fingerprint(path: Any, theirs: Any, ours: dict[str, Any]) -> None:
    theirs = theirs if isinstance(theirs, dict) else {}
    differing = sorted(
        name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name)
    )
    if differing:
        raise ValueError(
            f"`checkpoint` must be of the same fit; {path} was written by one that "
            f"differs in {differing}. Call `fit` as then, delete the file, or give "
            "another path."
        )


def _progress(
    header: dict[str, Any], arrays: dict[str, np.ndarray], start: Progress
) -> Progress:
    """From the parts of a file, in form as a fit writes them."""
    for name in ("best_step", "since_best"):
        if type(header[name]) is not int:
            raise TypeError(f"`{name}` must be an integer; got {header[name]!r:.80}")
    arrays = dict(arrays)
    best_loss = arrays.pop("best_loss", None)
    record = {name: arrays.pop(name, None) for name in _RECORD}
    if best_loss is None or (best_loss.shape, best_loss.dtype) != ((), np.float64):
        raise ValueError("`best_loss` must be one number in double precision")
    for name, values in record.items():
        if values is None or values.ndim != 1 or values.dtype != _DTYPES[name]:
            raise ValueError(f"`{name}` must be a list of {_DTYPES[name].__name__}")
    filled = from_arrays(_tree(start), arrays)
    return Progress(
        filled["state"],
        filled["best_weights"],
        float(best_loss),
        header["best_step"],
        header["since_best"],
        {
            name: values.tolist()
            for name, values in record.items()
            if values is not None
        },
    )


def _check_record(progress: Progress, num_steps: int) -> None:
    """Raise unless a fit of ``num_steps`` can have come to this record.

    The losses say which evaluation was the best: one that was written from the record
    must be the one that follows from it.
    """
    steps, _, losses, times = (np.asarray(progress.record[name]) for name in _RECORD)
    if len({len(values) for values in progress.record.values()}) != 1 or not len(steps):
        raise ValueError("its record must have one entry for each evaluation")
    for name in ("loss", "validation_loss", "wall_time"):
        check_finite_values(name, progress.record[name])
    if steps[0] < 1 or np.any(np.diff(steps) < 1) or steps[-1] > num_steps:
        raise ValueError(f"`step` must increase from 1 to at most {num_steps}")
    if times[0] < 0.0 or np.any(np.diff(times) < 0.0):
        raise ValueError("`wall_time` must not decrease from 0")
    check_finite_values("best_loss", progress.best_loss)
    best = int(np.argmin(losses))  # the first of several
    if progress.best_step == 0:
        expected = (min(progress.best_loss, losses[best]), 0, len(steps))
    else:
        expected = (losses[best], int(steps[best]), len(steps) - 1 - best)
    if (progress.best_loss, progress.best_step, progress.since_best) != expected:
        raise ValueError(
            "`best_loss`, `best_step` and `since_best` must be those of the record"
        )
