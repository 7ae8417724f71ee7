"""Synthesis ahead of training: the ring, its runtimes, and the sampler for use in other training loops."""

from ptgm_fast.engine.batch import Batch, Counts
from ptgm_fast.engine.capture import CapturedStep
from ptgm_fast.engine.overlap import Overlap, OverlapPlan, plan_overlap
from ptgm_fast.engine.pooled import PoolDataset
from ptgm_fast.engine.ring import Ring, Slot
from ptgm_fast.engine.runtime import InlineRuntime, Lane, Runtime, StreamRuntime, ThreadRuntime
from ptgm_fast.engine.sampler import ConditionedSampler, FastSampler
from ptgm_fast.engine.stream import BatchStream

__all__ = [
    "Batch",
    "BatchStream",
    "CapturedStep",
    "ConditionedSampler",
    "Counts",
    "FastSampler",
    "InlineRuntime",
    "Lane",
    "Overlap",
    "OverlapPlan",
    "PoolDataset",
    "Ring",
    "Runtime",
    "Slot",
    "StreamRuntime",
    "ThreadRuntime",
    "plan_overlap",
]
