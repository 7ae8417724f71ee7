"""Where the time of a run goes."""

from ptgm_fast.profiling.spans import SpanRecorder

__all__ = ["SpanRecorder"]
