"""Checkpoints of a stage: written atomically, verified by SHA-256 when read, loaded without running any code."""

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
# Appended to the archive that torch.save writes. torch.load ignores it, and by itself does not detect a flipped bit.
_TRAILER = b"ptgm-fast sha256"
_TRAILER_BYTES = len(_TRAILER) + hashlib.sha256().digest_size


class CheckpointFile:
    """The latest checkpoints of a run: `checkpoint.pt`, and the older `checkpoint.1.pt`, `checkpoint.2.pt`, ...

    Every random number is addressed by its index and the learning rate is a function of the step, so a state consists of
    tensors (weights, optimizer, average), the stage's name and its step.

    A state on a GPU is copied to the host and written by a background thread while training continues; a state on a CPU is
    written before `save` returns. The next call of any method first waits for that thread, and re-raises its exception.
    """

    def __init__(
        self,
        path: Path,
        *,
        keep: int = 1,
        config: str = "",
        notice: Callable[[str], None] = lambda message: None,
    ) -> None:
        """keep >= 1: how many checkpoints to keep. config: the run's full config as text, including the seed; a checkpoint
        of another config is refused. notice(message) is called when a damaged checkpoint is skipped."""
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.path = path
        self.keep = keep
        self.config = config
        self.notice = notice
        # Entries that the caller adds to every saved state, such as the results of earlier stages.
        self.carried: dict[str, Any] = {}
        self._pending: Future[None] | None = None

    def exists(self) -> bool:
        return bool(self.files())

    def files(self) -> list[Path]:
        """The existing checkpoint files, newest first, damaged or not."""
        self.wait()
        older = [
            (int(number), path)
            for path in self.path.parent.glob(f"{self.path.stem}.*{self.path.suffix}")
            if (number := path.stem.removeprefix(f"{self.path.stem}.")).isdecimal()
        ]
        newest = [self.path] if self.path.is_file() else []
        return [*newest, *(path for _, path in sorted(older))]

    def save(self, state: Mapping[str, Any]) -> None:
        """Save `state` as the newest checkpoint. Raises OSError (disk full) and leaves the earlier checkpoints intact.

        The earlier ones are renamed only once the new one is on disk under its temporary name: a kill between any
        two steps leaves at least one intact checkpoint that `load` finds. For a state on a GPU, the error is raised by the
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
        """Wait until the last save is on disk. Re-raises its exception, once."""
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
        """Return the newest intact state, on the CPU. Damaged newer files are renamed to NAME.damaged and reported.

        Raises UserError if no file is intact, for another format, and for the checkpoint of another config.
        """
        damaged: list[tuple[Path, str]] = []
        for path in self.files():
            state = _read(path)
            if isinstance(state, str):
                damaged.append((path, state))
                continue
            self._check(path, state)
            for file, problem in damaged:
                # Out of the way, so that the next save does not rename it over this intact one.
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
            + "\nNo intact checkpoint is left; remove the damaged files and start the run again"
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
        changed = [f"{line} (now)" for line in now if line not in before]
        changed += [f"{line} (before)" for line in before if line not in now]
        raise UserError(
            f"checkpoint {str(path)!r} belongs to a run with another config; a run must be resumed with the same one. "
            f"Different: {'; '.join(changed[:6])}\n"
            "Put config.toml back as it was, or start a new run in another folder"
        )


@contextmanager
def written(checkpoint: CheckpointFile | None) -> Iterator[None]:
    """Make sure that the block's checkpoints are on disk when it exits, even by an exception."""
    try:
        yield
    finally:
        if checkpoint is not None:
            checkpoint.wait()


def to_host(state: Any) -> tuple[Any, Callable[[], None]] | None:
    """A copy of a state with its GPU tensors in pinned memory, and a function that waits until they have arrived.

    None if no tensor is on a GPU. The copies are queued on the current stream: they see the results of all work queued so
    far, and nothing of what is queued afterwards.
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
    """The state in a file, or the reason why the file is damaged."""
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
