"""Profile where the time of a run goes: spans, hardware counters, traces, and the bottleneck."""

from ptgm_fast.profiling.schema import Profile, read_profile
from ptgm_fast.profiling.session import Profiler, profile
from ptgm_fast.profiling.spans import SpanRecorder

__all__ = ["Profile", "Profiler", "SpanRecorder", "profile", "read_profile"]
