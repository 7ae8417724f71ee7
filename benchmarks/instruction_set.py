"""The instruction set of the CPU suites: PTGM_FAST_ISA=avx2 limits a wider processor to AVX2.

python benchmarks/instruction_set.py prints the narrower instruction sets that can be measured here.

The switch exists for the suites only. It limits all contenders: our code, PyTorch's, oneDNN's, MKL's and torch.compile's.
Import this before torch, whose libraries read the environment when they are first used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

SWITCH = "PTGM_FAST_ISA"
ORDER = ("portable", "avx2", "avx512")
# The libraries' environment variables, by instruction set.
LIBRARIES: Mapping[str, Mapping[str, str]] = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }
}

os.environ.update(LIBRARIES.get(os.environ.get(SWITCH, ""), {}))


def in_use() -> tuple[str | None, bool]:
    """Set our instruction set to at most the requested one; return it, and whether it is narrower than the processor's.

    None if the extension is missing. Raises ValueError for an unknown name, and if torch was used too early to be limited.
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


if __name__ == "__main__":
    own, _ = in_use()
    print(*(isa for isa in LIBRARIES if own and ORDER.index(isa) < ORDER.index(own)))
