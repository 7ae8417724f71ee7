"""What the benchmarks share: the number of threads, and an allocator that keeps its memory."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Both numbers of threads, for torch and for the fused ops."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def kept_memory() -> None:
    """Keep freed memory in the process, for every contender alike.

    glibc gives tensors from 32 MiB back to the kernel at once, so that each call would fault its output in anew,
    page by page: on a virtual machine several times the work itself, and equal for all.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL("libc.so.6")
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    assert libc.mallopt(m_mmap_max, 0)
    assert libc.mallopt(m_trim_threshold, 2**31 - 1)
    assert libc.mallopt(m_top_pad, 256 << 20)
