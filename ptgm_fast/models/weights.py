"""Reading and writing weights: safetensors, or `torch.load(weights_only=True)`; no code in a file is executed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptgm_fast.errors import UserError
from ptgm_fast.models.checkpoints import fitting, only_state, split_choice
from ptgm_fast.models.hub import HUB, weights_of


def save_weights(
    state: nn.Module | Mapping[str, Tensor],
    path: Path | str,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write a module's state (or a state dict) as safetensors: to a temporary name, flushed, then renamed.

    A full disk or a kill leaves an earlier file of that name intact. Raises OSError on a failed write.
    """
    write_atomically(Path(path), encoded(state, metadata))


def encoded(
    state: nn.Module | Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> bytes:
    """The bytes that `save_weights` writes. A tensor under two names is stored twice, so that every loader finds both.

    Raises UserError if the state holds anything but tensors.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    held = set()
    for name, value in (state.state_dict() if isinstance(state, nn.Module) else state).items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"the state dict has a {type(value).__name__} under {name!r}; safetensors holds tensors only: keep it in a "
                "registered buffer"
            )
        tensors[name] = value.detach().cpu().contiguous()
        # safetensors refuses tensors that share memory.
        memory = tensors[name].untyped_storage().data_ptr()
        if memory in held:
            tensors[name] = tensors[name].clone()
        held.add(memory)
    # A single entry: safetensors writes several in an order that varies from call to call, and so would the bytes.
    header = {"ptgm_fast": json.dumps(metadata, sort_keys=True)} if metadata else None
    return save(tensors, header)


def decoded(data: bytes) -> dict[str, Tensor]:
    """The state dict in the bytes that `encoded` returned."""
    from safetensors.torch import load

    return load(data)


def read_metadata(path: Path | str) -> dict[str, str]:
    """The metadata that `save_weights` was given; empty for other files."""
    from safetensors import SafetensorError, safe_open

    if Path(path).suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {}).get("ptgm_fast", "{}"))
    except (OSError, SafetensorError, json.JSONDecodeError):
        # Reading the tensors will report what is wrong with the file.
        return {}
    return found if isinstance(found, dict) else {}


def write_atomically(
    path: Path,
    data: bytes | memoryview,
    *,
    before_rename: Callable[[], None] | None = None,
    temporary: Path | None = None,
) -> None:
    """Atomic write: `path` holds either its old contents or all of `data`, even after a kill or a full disk.

    The data is flushed under a temporary name, renamed, and the folder flushed, so that it survives a power cut.
    before_rename is called when the data is on disk and `path` is still unchanged. temporary: the temporary name, on the
    same file system, for files that several processes may write at once.
    """
    temporary = temporary or path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if before_rename:
            before_rename()
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot flush a folder; there, the rename is as durable as they make it.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def read_state(
    path: Path | str, *, what: str = "weights", mapped: bool = False
) -> dict[str, Tensor]:
    """Read the state dict in a .safetensors file or a `weights_only` PyTorch file; FILE#NAME selects one of several.

    mapped: where the file's format allows, memory-map the tensors privately (writing to them leaves the file alone),
    so that nothing is held twice; the file must not be rewritten in place while they are in use.
    Raises UserError if the file is missing or damaged, or holds code, no state dict (names to tensors), or several.
    """
    file, choice = split_choice(path)
    return only_state(_read(file, what, mapped), choice, where=f"{what}: {str(file)!r}")


def _read(file: Path, what: str, mapped: bool = False) -> Mapping[Any, Any]:
    """A file's contents: a dict of anything. hf-hub:ORG/NAME is the weights file of a model in the local cache."""
    if str(file).startswith(HUB):
        file = weights_of(str(file).removeprefix(HUB), what=what)
    if not file.is_file():
        raise UserError(f"{what}: file {str(file)!r} does not exist")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        # Files of torch < 1.6 are not archives and cannot be mapped.
        loaded = torch.load(
            file, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(file)
        )
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{what}: {str(file)!r} is a pickle that holds more than tensors and was not loaded "
            "(loading it could run code). Save it again as safetensors or as a plain state dict"
        ) from error
    except Exception as error:  # the readers raise several unrelated types for damaged files
        raise UserError(
            f"{what}: {str(file)!r} is damaged or has another format ({error})"
        ) from error
    if not isinstance(loaded, Mapping):
        raise UserError(f"{what}: {str(file)!r} does not hold a state dict (names to tensors)")
    return loaded


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)


def load_weights(
    module: nn.Module,
    path: Path | str,
    *,
    what: str = "weights",
    on_notice: Callable[[str], None] = _warn,
) -> None:
    """Load a file into a module, strictly, without the wrapping of training scripts (see `checkpoints.fitting`).

    path: .safetensors or a weights-only PyTorch file; FILE#NAME selects one if a file holds several networks that fit.
    on_notice(message): called with what was stripped; by default, a warning. Raises UserError naming the tensors that do
    not fit.
    """
    file, choice = split_choice(path)
    where = f"{what}: {str(file)!r}"
    loaded = _read(file, what)
    state, place = fitting(loaded, module.state_dict(), choice, where=where)
    load_state(module, state, where=f"{where} {place}".rstrip())
    if place:
        on_notice(f"{where}: loaded the weights {place}")


def load_state(
    module: nn.Module, state: Mapping[str, Tensor], *, where: str, assign: bool = False
) -> None:
    """Load a state dict strictly; the UserError lists tensors that are missing, unexpected or of the wrong shape.

    assign: the module takes the tensors themselves instead of copying them (it may then be on the meta device).
    """
    check_fit(module.state_dict(), state, where=where, architecture=type(module).__name__)
    module.load_state_dict(dict(state), assign=assign)


def check_fit(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], *, where: str, architecture: str
) -> None:
    """Raise UserError unless `state` has the names and shapes of `own`; it lists the tensors that do not fit."""
    problems = []
    for title, names in (
        ("missing", own.keys() - state.keys()),
        ("unexpected", state.keys() - own.keys()),
    ):
        if names:
            problems.append(f"{title}: {_listed(sorted(names))}")
    shapes = [
        f"{name} {list(state[name].shape)} (expected {list(own[name].shape)})"
        for name in own.keys() & state.keys()
        if own[name].shape != state[name].shape
    ]
    if shapes:
        problems.append(f"of the wrong shape: {_listed(sorted(shapes))}")
    if problems:
        raise UserError(
            f"{where} does not fit the architecture {architecture}.\n" + "\n".join(problems)
        )


def _listed(names: list[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def sha256(path: Path | str) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
