"""NVIDIA's network pickles read without running anything of them: tensors and plain containers, and nothing else.

Such a pickle carries the source code of its classes and runs it when it is loaded. Here every class and function it
asks for is looked up in `ALLOWED`, which has constructors of tensors, arrays and containers only; its networks become
`Record`s, whose source is never compiled.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ptgm_fast.errors import UserError


@dataclass(frozen=True)
class Record:
    """An object of the pickle as data: its class's name and its attributes."""

    class_name: str
    state: dict[str, Any]


class PlainDict(dict[str, Any]):
    """What NVIDIA's EasyDict becomes."""


def _record(meta: dict[str, Any]) -> Record:
    return Record(str(meta.get("class_name")), dict(meta.get("state") or {}))


def _storage(data: bytes) -> Any:
    # The function of this name in torch loads whatever the bytes hold; this one takes tensors and storages only.
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _parameter(data: torch.Tensor, requires_grad: bool, hooks: Any) -> torch.Tensor:
    return data


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> torch.Tensor:
    return torch._utils._rebuild_tensor(storage, offset, size, stride)


ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _record,
    ("dnnlib.util", "EasyDict"): PlainDict,
    ("dnnlib", "EasyDict"): PlainDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch", "device"): torch.device,
    ("torch", "Size"): torch.Size,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "slice"): slice,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    # numpy's own functions for these names, wherever this version keeps them.
    ALLOWED[_module, "_reconstruct"] = np.empty(0).__reduce__()[0]  # type: ignore[assignment]
    ALLOWED[_module, "scalar"] = np.float32(0).__reduce__()[0]  # type: ignore[assignment]


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # Protocol 2 writes Python 2's name of the builtins.
        place = "builtins" if module == "__builtin__" else module
        if (place, name) in ALLOWED:
            return ALLOWED[place, name]
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("an object outside the file")


class _Refused(Exception):
    pass


def read_pickle(path: Path) -> Any:
    """The contents of a network pickle. Raises UserError for one that asks for anything but data, and for damage."""
    try:
        with path.open("rb") as file:
            return _Reader(file).load()
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read ({error.strerror})") from error
    except _Refused as error:
        raise UserError(
            f"{str(path)!r} was not read: it asks for {error}, which is no tensor and no plain container, and loading it could "
            "run code. Only pickles of NVIDIA's StyleGAN2-ADA and StyleGAN3 (PyTorch) are understood"
        ) from error
    except Exception as error:  # damaged pickles raise nearly anything
        raise UserError(
            f"{str(path)!r} is damaged or no pickle ({type(error).__name__}: {error}); copy it again"
        ) from error
