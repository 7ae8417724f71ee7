"""Checkpoints of a stage: one file, written whole or not at all, read without running any code."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ptgm_fast.errors import UserError
from ptgm_fast.models.weights import write_atomically

FORMAT = 1


class CheckpointFile:
    """The newest checkpoint of a run: `checkpoint.pt` in its folder.

    Every random number is addressed by its index, so a state is tensors, the stage's name and its step.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # What the caller wants in every state beside the stage's own, such as the earlier stages' results.
        self.carried: dict[str, Any] = {}

    def exists(self) -> bool:
        return self.path.is_file()

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint. Raises OSError (full disk) with the earlier checkpoint still whole."""
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, **self.carried, **state}, buffer)
        write_atomically(self.path, buffer.getvalue())

    def load(self) -> dict[str, Any]:
        """The saved state on the CPU. Raises UserError for a damaged file or another format."""
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            if state["format"] != FORMAT:
                raise UserError(
                    f"checkpoint {str(self.path)!r} has format {state['format']}, this version reads {FORMAT}; "
                    "start the run anew in another folder"
                )
        except UserError:
            raise
        except Exception as error:  # torch.load raises several unrelated types for damaged files
            raise UserError(
                f"checkpoint {str(self.path)!r} is damaged ({error}); remove it and start the run again"
            ) from error
        return state
