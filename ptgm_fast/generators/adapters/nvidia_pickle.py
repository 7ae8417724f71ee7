"""Reading NVIDIA's network pickles without running any of their code.

A pickle is a program whose only power is to call what its reader looks up for it. NVIDIA's pickles carry the source code
of their classes for such a call to run. Arrays alone can do harm too, since NumPy lets a pickle say which of its bytes
are pointers. So nothing is called here: plain containers are built, every other call is recorded as a `Call`, and tensors
and numbers are built from these records afterwards, with checks of what each must be.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from ptgm_fast.errors import UserError

NETWORK = "torch_utils.persistence._reconstruct_persistent_obj"
TENSOR, PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
STORAGE = "torch.storage._load_from_bytes"
NUMPY = [f"{module}.multiarray.{{}}" for module in ("numpy.core", "numpy._core")]
SCALARS = {name.format("scalar") for name in NUMPY}
NOTED = {
    *(NETWORK, TENSOR, PARAMETER, STORAGE, "torch.device", "builtins.slice"),
    *(SCALARS | {name.format("_reconstruct") for name in NUMPY}),
    *("numpy.ndarray", "numpy.dtype"),
}


class Call:
    """A call that a pickle requested but that was not made: its name, arguments, and the state set on its result."""

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: tuple[Any, ...]) -> None:
        self.name, self.arguments, self.state = name, arguments, None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Noter:
    """What a pickle finds under a name in `NOTED`. It can be called. It refuses the other thing that pickles can do:
    setting state on what they find (a function's defaults, a class's methods)."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *arguments: Any) -> Call:
        return Call(self.name, arguments)

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError(f"it changes {self.name}")


class _Dict(dict[Any, Any]):
    """Stands for OrderedDict and NVIDIA's EasyDict: entries without attributes. The class takes no state either."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


CONTAINERS: dict[str, type] = {
    "dnnlib.util.EasyDict": _Dict,
    "dnnlib.EasyDict": _Dict,
    "collections.OrderedDict": _Dict,
    "torch.Size": tuple,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # Protocol 2 writes Python 2's name for the builtins.
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full in CONTAINERS:
            return CONTAINERS[full]
        if full in NOTED:
            return _Noter(full)
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("an object outside the file")


class _Refused(Exception):
    pass


def read_pickle(path: Path) -> Any:
    """The contents of a network pickle: plain containers, and a `Call` for anything else that it holds.

    Raises UserError if the pickle requests anything that is not part of NVIDIA's networks, or is damaged.
    """
    try:
        with path.open("rb") as file:
            return _Reader(file).load()
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read ({error.strerror})") from error
    except _Refused as error:
        if "tflib" in str(error):
            raise UserError(
                f"{str(path)!r} is a pickle of the TensorFlow version. NVIDIA's stylegan2-ada-pytorch converts it: "
                f"python legacy.py --source={path.name} --dest=NEW.pkl; then convert NEW.pkl"
            ) from error
        raise UserError(
            f"{str(path)!r} was not read: it asks for {error}, which is neither a tensor nor a plain container, and loading it "
            "could run code. Only pickles of NVIDIA's StyleGAN2-ADA and StyleGAN3 (PyTorch) are supported"
        ) from error
    except Exception as error:  # damaged pickles raise nearly anything
        raise UserError(
            f"{str(path)!r} is damaged or not a pickle ({type(error).__name__}: {error}); copy it again"
        ) from error


@dataclass(frozen=True)
class PickledModule:
    """A network in a pickle, as data: its class name and its attributes. Its source code is left in the pickle."""

    class_name: str
    state: dict[str, Any]

    def entries(self, name: str) -> dict[str, Any]:
        """A dict attribute; empty if there is none. Raises ValueError if the attribute is not a dict."""
        found = self.state.get(name)
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise ValueError(f"{self.class_name}.{name} is a {type(found).__name__}")
        return {str(k): v for k, v in found.items()}


def pickled_module(value: Any) -> PickledModule | None:
    """The network that a call would have made; None for anything else."""
    if not isinstance(value, Call) or value.name != NETWORK or len(value.arguments) != 1:
        return None
    meta = value.arguments[0]
    if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
        return None
    return PickledModule(str(meta.get("class_name")), meta["state"])


def tensor(value: Any) -> Tensor:
    """The tensor that a call would have made, copied out of its storage. Raises ValueError for anything else."""
    if isinstance(value, Call) and value.name == PARAMETER and value.arguments:
        value = value.arguments[0]
    if not isinstance(value, Call) or value.name != TENSOR:
        raise ValueError("it is not a tensor")
    with _as_value_error():
        storage, offset, size, stride, *_ = value.arguments
        if storage.name != STORAGE:
            raise ValueError("its storage is of an unknown kind")
        # torch's function of STORAGE's name loads whatever the bytes hold; this loads tensors and storages only.
        stored = torch.load(io.BytesIO(storage.arguments[0]), map_location="cpu", weights_only=True)
        flat = torch.tensor([], dtype=stored.dtype).set_(stored)
        if math.prod(size) > len(flat):
            raise ValueError(f"it has {len(flat)} numbers for the shape {list(size)}")
        return flat.as_strided(size, stride, offset).clone()


def plain(value: Any, depth: int = 0) -> Any:
    """Network arguments as JSON values; NumPy scalars become numbers. Raises ValueError for anything else."""
    if depth > 8:
        raise ValueError("they are nested too deeply")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(k): plain(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, depth + 1) for v in value]
    if isinstance(value, Call) and value.name in SCALARS:
        with _as_value_error():
            kind, data = value.arguments
            code, order = kind.arguments[0], kind.state[1].replace("|", "=")
            if code not in ("f2", "f4", "f8", "i4", "i8", "u1", "b1"):
                raise ValueError(f"a number is of type {code!r}")
            return np.frombuffer(data, np.dtype(order + code), count=1)[0].item()
    found = value.name if isinstance(value, Call) else type(value).__name__
    raise ValueError(f"a {found} is neither a number, a string nor a list or dict of them")


@contextmanager
def _as_value_error() -> Iterator[None]:
    """Turn any error that damaged or forged arguments cause into a ValueError."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"it is damaged ({type(error).__name__}: {error})") from error
