"""Checkpoints of a stage: files written whole or not at all, proven whole when read, read without running any code."""

from __future__ import annotations

import copy
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ptgm_fast.errors import UserError
from ptgm_fast.models.weights import write_atomically

FORMAT = 3
# After the archive that torch.save writes: torch.load reads past it, and does not notice a flipped bit without it.
_TRAILER = b"ptgm-fast sha256"
_TRAILER_BYTES = len(_TRAILER) + hashlib.sha256().digest_size


class CheckpointFile:
    """The newest checkpoints of a run: `checkpoint.pt`, and before it `checkpoint.1.pt`, `checkpoint.2.pt`, ...

    Every random number is addressed by its index and the learning rate is a function of the step, so a state is
    tensors (weights, optimizer, average), the stage's name and its step.

    A state on a GPU is copied to the host and written by a thread, while the training goes on; one on a CPU at once. The
    next call of any method waits for that thread first, and raises what it raised.
    """

    def __init__(
        self,
        path: Path,
        *,
        keep: int = 1,
        config: str = "",
        notice: Callable[[str], None] = lambda message: None,
    ) -> None:
        """keep >= 1: how many checkpoints stay. config: the run's whole config as text, seed and all; a checkpoint
        of another one is refused. notice(message) is told when a damaged checkpoint is passed over."""
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.path = path
        self.keep = keep
        self.config = config
        self.notice = notice
        # What the caller wants in every state beside the stage's own, such as the earlier stages' results.
        self.carried: dict[str, Any] = {}
        self._pending: Future[None] | None = None

    def exists(self) -> bool:
        return bool(self.files())

    def files(self) -> list[Path]:
        """The checkpoints that are there, newest first, whole or not."""
        self.wait()
        older = [
            (int(number), path)
            for path in self.path.parent.glob(f"{self.path.stem}.*{self.path.suffix}")
            if (number := path.stem.removeprefix(f"{self.path.stem}.")).isdecimal()
        ]
        newest = [self.path] if self.path.is_file() else []
        return [*newest, *(path for _, path in sorted(older))]

    def save(self, state: Mapping[str, Any]) -> None:
        """Make this the newest checkpoint. Raises OSError (full disk) with the earlier checkpoints still whole.

        The earlier ones move up only when the new one is on the disk under its temporary name: a kill between any
        two steps leaves at least one whole checkpoint that `load` finds. Of a state on a GPU, the error is raised by the
        next call.
        """
        self.wait()
        whole = {"format": FORMAT, "config": self.config, **self.carried, **state}
        copied = to_host(whole)
        if copied is None:
            self._write(whole)
            return
        held, arrived = copied

        def write() -> None:
            arrived()
            self._write(held)

        thread = ThreadPoolExecutor(1, "ptgm-fast checkpoint")
        self._pending = thread.submit(write)
        thread.shutdown(wait=False)

    def wait(self) -> None:
        """Until the last save is on the disk. Raises what it raised, once."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, whole: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(whole, buffer)
        with buffer.getbuffer() as written:
            digest = hashlib.sha256(written).digest()
        buffer.write(_TRAILER + digest)
        with buffer.getbuffer() as data:
            write_atomically(self.path, data, before_rename=self._move_up)

    def _move_up(self) -> None:
        for number in range(self.keep - 1, 0, -1):
            source = self._older(number - 1) if number > 1 else self.path
            if source.is_file():
                source.replace(self._older(number))

    def _older(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.stem}.{number}{self.path.suffix}")

    def load(self) -> dict[str, Any]:
        """The newest whole state on the CPU; a damaged newer file is renamed to NAME.damaged and said.

        Raises UserError if none is whole, or for another format, or for the checkpoint of another config.
        """
        damaged: list[tuple[Path, str]] = []
        for path in self.files():
            state = _read(path)
            if isinstance(state, str):
                damaged.append((path, state))
                continue
            self._check(path, state)
            for file, problem in damaged:
                # Out of the way: the next save must not move it up over this whole one.
                file.replace(file.with_name(f"{file.name}.damaged"))
                self.notice(
                    f"checkpoint {str(file)!r} is damaged ({problem}); continuing from the one before it, "
                    f"step {state['step']} of stage {state['stage']!r}"
                )
            return state
        if not damaged:
            raise UserError(
                f"there is no checkpoint {str(self.path)!r}; start the run without --resume"
            )
        raise UserError(
            "\n".join(
                f"checkpoint {str(file)!r} is damaged ({problem})" for file, problem in damaged
            )
            + "\nNo whole checkpoint is left; remove the damaged files and start the run again"
        )

    def _check(self, path: Path, state: Mapping[str, Any]) -> None:
        if state.get("format") != FORMAT:
            raise UserError(
                f"checkpoint {str(path)!r} has format {state.get('format')}, this version reads {FORMAT}; "
                "start the run anew in another folder"
            )
        if state["config"] == self.config:
            return
        before, now = state["config"].splitlines(), self.config.splitlines()
        changed = [f"{line} (was not so)" for line in now if line not in before]
        changed += [f"{line} (was so)" for line in before if line not in now]
        raise UserError(
            f"checkpoint {str(path)!r} is of a run with another config; a resume continues a run as it was. "
            f"Different: {'; '.join(changed[:6])}\n"
            "Put config.toml back as it was, or start a new run in another folder"
        )


@contextmanager
def written(checkpoint: CheckpointFile | None) -> Iterator[None]:
    """The block's checkpoints are on the disk when it is left, in whatever way."""
    try:
        yield
    finally:
        if checkpoint is not None:
            checkpoint.wait()


def to_host(state: Any) -> tuple[Any, Callable[[], None]] | None:
    """A copy of a state, its GPU tensors in pinned memory, and what waits until they have arrived; None without any.

    The copies are queued on the current stream: they are of the values that all that is queued so far leaves, whatever
    is queued afterwards.
    """
    tensors = [t for t in tree_leaves(state) if isinstance(t, Tensor)]
    device = next((t.device for t in tensors if t.device.type == "cuda"), None)
    if device is None:
        return None
    memo: dict[int, Any] = {}
    for tensor in tensors:
        pinned = torch.empty_like(tensor, device="cpu", pin_memory=True, requires_grad=False)
        memo[id(tensor)] = pinned.copy_(tensor.detach(), non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return copy.deepcopy(state, memo), event.synchronize


def _read(path: Path) -> dict[str, Any] | str:
    """The state in a file, or in words why it is not whole."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    archive, trailer = memoryview(data)[:-_TRAILER_BYTES], data[-_TRAILER_BYTES:]
    signed = trailer.startswith(_TRAILER)
    if signed and trailer[len(_TRAILER) :] != hashlib.sha256(archive).digest():
        return "its bytes do not match their SHA-256"
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises several unrelated types for damaged files
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    if not isinstance(state, dict):
        return "it holds no state"
    # A file of format 1 had no trailer; of this format, one without it was cut short.
    if not signed and state.get("format") == FORMAT:
        return "its SHA-256 is missing"
    return state
