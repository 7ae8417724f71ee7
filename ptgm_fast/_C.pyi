"""The compiled extension: functions over addresses and sizes, called only by kernels/<op>/cpu_impl.py."""

from typing import Any

def __getattr__(name: str) -> Any: ...
