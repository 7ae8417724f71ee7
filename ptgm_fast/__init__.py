"""Transfer learning from a frozen conditional generator and a frozen source classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptgm_fast.engine import FastSampler

__version__ = "0.2.0"
__all__ = ["FastSampler", "__version__"]


def __getattr__(name: str) -> Any:
    # Keep the import cheap: torch is loaded on first use.
    if name == "FastSampler":
        from ptgm_fast.engine import FastSampler

        return FastSampler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
