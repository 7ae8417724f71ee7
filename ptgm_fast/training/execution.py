"""How networks are executed: memory layout, precision, compilation, and batch statistics over all processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ptgm_fast.errors import UserError
from ptgm_fast.models import TargetNetwork
from ptgm_fast.models.precision import in_precision
from ptgm_fast.training.batchnorm import SynchronizedBatchNorm, has_batch_norm
from ptgm_fast.training.compiling import bytes_a_second, traffic
from ptgm_fast.training.distributed import ProcessGroup
from ptgm_fast.training.options import EngineOptions

# Assumed, not measured on a GPU: compiling takes about 20 s plus 0.2 s per operator of the forward; a training step moves
# three times the bytes of its forward.
COMPILE_SECONDS, COMPILE_SECONDS_A_CALL, FORWARDS_A_STEP = 20.0, 0.2, 3


@dataclass(frozen=True)
class Execution:
    """How a run is executed: the settings of the same names (see `decide`, `wrap`, `deterministic`), and its processes."""

    compile: str = "auto"
    precision: str = "auto"
    deterministic: bool = True
    engine: EngineOptions = field(default_factory=EngineOptions)
    group: ProcessGroup = field(default_factory=ProcessGroup)


@dataclass(frozen=True)
class Decision:
    """Whether a stage's forward is compiled, and why."""

    compiled: bool
    reason: str


def decide(
    choice: str,
    network: TargetNetwork,
    device: torch.device,
    *,
    steps: int,
    shape: tuple[int, ...],
    precision: str,
    group: ProcessGroup,
) -> Decision:
    """Decide whether to compile the forward of a stage of `steps` steps on images of `shape`; choice is auto, always or never.

    auto compiles if that saves time overall: steps * seconds saved per step > seconds of compiling.
    On CPUs it never does: on one core (AMD EPYC, AVX2, torch 2.14, forward and backward, batch 128 of 28x28 or 32 of 64x64) compiling
    took 20 s and more, and then the step was 1.08 times as fast for cnn-small, 0.94 for resnet-small, 1.00 for timm's
    resnet18, 0.97 for its convnext_atto. On GPUs the seconds saved are those of the memory traffic that fusion removes
    (`traffic`) at the device's memory bandwidth; the seconds of compiling follow from `COMPILE_SECONDS` and
    `COMPILE_SECONDS_A_CALL`. These have not been measured on a GPU.
    The rule uses the stage's steps, network and device, but neither a clock nor the number of steps left: a run gives the same
    bits whenever it is started and wherever it is resumed.
    precision: of the forward, as `for_training` gives it.
    Raises UserError for always with several processes and a network with batch norm: batch statistics are exchanged in
    the middle of the forward, which a compiled graph cannot contain.
    """
    if choice == "never":
        return Decision(False, 'compile = "never"')
    exchanged = group.size > 1 and has_batch_norm(network)
    if choice == "always":
        if exchanged:
            raise UserError(
                f'compile = "always" is not possible with {group.size} processes and a network with batch norm: its '
                'statistics are exchanged within the forward. Use compile = "auto" or "never", or a network without batch norm'
            )
        return Decision(True, 'compile = "always"')
    if exchanged:
        return Decision(False, "batch statistics are exchanged between processes in the forward")
    if device.type == "cpu":
        return Decision(False, "on CPUs a compiled step is not faster")
    try:
        found = traffic(network, network.features, shape)
    except Exception as error:  # a user's network may read values, which fake tensors lack
        return Decision(False, f"what it would save cannot be estimated ({type(error).__name__})")
    # `traffic` counts float32.
    part = 0.5 if precision == "bfloat16" else 1.0
    saved_bytes = FORWARDS_A_STEP * part * found.saved_bytes
    saved = steps * saved_bytes / bytes_a_second(device)
    compiling = COMPILE_SECONDS + COMPILE_SECONDS_A_CALL * found.calls
    told = f"in {steps} steps fusion saves about {saved:.0f} s of memory traffic, and compiling takes about {compiling:.0f} s"
    return Decision(saved > compiling, told)


@contextmanager
def deterministic(wanted: bool, device: torch.device) -> Iterator[None]:
    """On a GPU, make cuDNN, cuBLAS and torch's operators use deterministic algorithms within the block.

    An operator that has none warns. The previous settings are restored. On a CPU all operators are deterministic anyway.
    """
    if not wanted or device.type == "cpu":
        yield
        return
    # With several streams, cuBLAS is deterministic only with this workspace setting; it is read at its first use.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cudnn: Any = torch.backends.cudnn
    enabled = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warns)
        cudnn.deterministic, cudnn.benchmark = before


def wrap(
    network: TargetNetwork,
    *,
    device: torch.device,
    precision: str,
    compiled: bool,
    group: ProcessGroup,
) -> Callable[[Tensor], Tensor]:
    """Return a stage's forward, from images [N, C, H, W] to features [N, D]; gradients flow.

    The weights are converted to channels-last. precision: of the forward, as `for_training` gives it. compiled: by
    `torch.compile` for fixed shapes; a step's shapes never change, and evaluation, whose last batch is shorter, runs `network`
    itself. With several processes, batch norm uses the statistics of all of them.
    """
    network.to(memory_format=torch.channels_last)
    extractor = torch.compile(network.features, dynamic=False) if compiled else network.features
    extract = in_precision(extractor, device=device, precision=precision)
    synchronized = group.size > 1 and has_batch_norm(network)

    def features(images: Tensor) -> Tensor:
        statistics = SynchronizedBatchNorm(group) if synchronized else nullcontext()
        with statistics:
            return extract(images)

    return features


class CompileClock:
    """Measures compile time: the duration of the first step minus the median of the four after it."""

    STEPS = 5

    def __init__(self, device: torch.device, compiled: bool) -> None:
        self._synchronize = compiled and device.type == "cuda"
        self._seconds: list[float] = []
        self._missing = self.STEPS if compiled else 0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time a step's forward and backward."""
        if len(self._seconds) >= self._missing:
            yield
            return
        began = time.perf_counter()
        yield
        if self._synchronize:
            torch.cuda.synchronize()
        self._seconds.append(time.perf_counter() - began)

    @property
    def seconds(self) -> float:
        if not self._seconds:
            return 0.0
        first, *others = self._seconds
        return max(0.0, first - (median(others) if others else 0.0))
