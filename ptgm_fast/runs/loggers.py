"""Loggers: where a run's metrics and pictures go in addition to its own files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from ptgm_fast.errors import MissingExtraError, UserError
from ptgm_fast.models.build import nearest
from ptgm_fast.runs.folder import RunFolder
from ptgm_fast.training.context import Context


class Logger(Protocol):
    def watch(self, context: Context) -> Context:
        """The same context, with its metrics also logged."""

    def close(self) -> None:
        """Log the pictures of a finished run's folder, and close the logger."""


class TensorBoardLogger:
    """Logs scalars ``STAGE/NAME`` over the stage's steps, and the run's pictures, to ``tensorboard/`` in its folder.

    The events mirror metrics.jsonl: the first event of a process rewrites all its lines, so that a resumed run contains no
    step twice. Raises MissingExtraError if the package is missing.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingExtraError("--logger tensorboard", "tensorboard", "tensorboard") from None
        self._make = SummaryWriter
        self._folder = RunFolder(folder)
        self._writer: Any = None

    def watch(self, context: Context) -> Context:
        told = context.on_metrics

        def on_metrics(stage: str, step: int, steps: int, metrics: Mapping[str, float]) -> None:
            if self._writer is None:
                # The run has just appended this line to metrics.jsonl, after the lines it kept.
                self._open()
                for record in self._folder.read_metrics():
                    self._scalars(record)
            else:
                self._scalars({"stage": stage, "step": step, **metrics})
            told(stage, step, steps, metrics)

        return replace(context, on_metrics=on_metrics)

    def _open(self) -> None:
        place = self._folder.path / "tensorboard"
        for old in place.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = self._make(log_dir=str(place))

    def _scalars(self, record: Mapping[str, Any]) -> None:
        for name, value in record.items():
            if name not in ("stage", "step"):
                self._writer.add_scalar(f"{record['stage']}/{name}", value, record["step"])
        self._writer.flush()

    def close(self) -> None:
        if self._writer is None:
            return
        for name in ("samples", "curves"):
            path = self._folder.path / f"{name}.png"
            if path.is_file():
                self._writer.add_image(name, _pixels(path), 0, dataformats="HWC")
        self._writer.close()


def _pixels(path: Path) -> Any:
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


LOGGERS = {"tensorboard": TensorBoardLogger}


def open_logger(name: str, folder: Path) -> Logger:
    """Open the logger `name` for a run's folder. Raises UserError for a name that is not in LOGGERS."""
    if name not in LOGGERS:
        raise UserError(
            f"unknown --logger {name!r}{nearest(name, list(LOGGERS))}; accepted: {', '.join(LOGGERS)}. "
            "metrics.jsonl in the run folder contains the same numbers for other tools"
        )
    return LOGGERS[name](folder)
