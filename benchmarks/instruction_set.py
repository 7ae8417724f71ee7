"""With which instruction set a CPU's suites run: PTGM_FAST_ISA=avx2 shows on a wider processor what an AVX2 one does.

The switch is for the suites alone. It lowers ours and the others alike: PyTorch's own code, oneDNN, MKL, what torch.compile writes.
To be imported before torch, whose libraries read the environment when they are first used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

SWITCH = "PTGM_FAST_ISA"
ORDER = ("portable", "avx2", "avx512")
# What the libraries are told.
LIBRARIES: Mapping[str, Mapping[str, str]] = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }
}

os.environ.update(LIBRARIES.get(os.environ.get(SWITCH, ""), {}))


def in_use() -> tuple[str | None, bool]:
    """The instruction set of ours, at most the one that was asked for, set here; and whether it is narrower than the processor's.

    None where the extension is missing. Raises ValueError for a name that is none, and where torch was used too early to follow.
    """
    import torch

    from ptgm_fast.kernels.dispatch import extension_missing

    asked = os.environ.get(SWITCH, "")
    if asked and asked not in LIBRARIES:
        raise ValueError(f"{SWITCH} = {asked!r}; accepted: {', '.join(LIBRARIES)}")
    if extension_missing():
        return None, False
    from ptgm_fast import _C

    widest: str = _C.isa()
    if not asked or ORDER.index(asked) >= ORDER.index(widest):
        return widest, False
    import torch._inductor.config

    _C.use_isa(asked)
    torch._inductor.config.cpp.simdlen = 256
    if torch.backends.cpu.get_cpu_capability().lower() != asked:
        raise ValueError(f"torch was used before {SWITCH} could lower its instruction set")
    return asked, True
