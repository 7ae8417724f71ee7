"""Where the whole module has no graph: its submodules one by one."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from ptgm_fast.generators.optimizer.report import PassReport
from ptgm_fast.generators.optimizer.rewrite import rewrite


def rewrite_parts(
    module: nn.Module, example: tuple[Any, ...], skip: Collection[str]
) -> tuple[tuple[str, ...], list[tuple[PassReport, ...]]]:
    """Replace, in place, the largest submodules that can be traced; returns their names and what the passes did.

    A submodule is tried if the example calls it once, with tensors [N, ...] alone: then nothing of its inputs can
    become a constant that a later call would need otherwise. Its sizes but N are those of the example.
    """
    num = next(a.shape[0] for a in example if isinstance(a, Tensor) and a.dim())
    calls: dict[str, list[tuple[Any, ...] | None]] = {}

    def recorder(name: str) -> Any:
        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            fits = not kwargs and all(
                isinstance(a, Tensor) and a.dim() and len(a) == num for a in args
            )
            calls.setdefault(name, []).append(args if fits and args else None)

        return record

    with ExitStack() as stack:
        for name, child in module.named_modules():
            if name:
                handle = child.register_forward_pre_hook(recorder(name), with_kwargs=True)
                stack.callback(handle.remove)
        module(*example)
    names: list[str] = []
    reports = []
    for name, child in list(module.named_modules()):
        inside = any(name.startswith(done + ".") for done in names)
        # A layer alone holds no pattern.
        if not name or inside or not list(child.children()):
            continue
        (*earlier, args) = calls.get(name, [None])
        if earlier or args is None:
            continue
        try:
            body, passes = rewrite(child, args, skip)
        except Exception:  # torch.export raises many kinds; all mean that there is no graph
            continue
        if any(p.matched for p in passes):
            module.set_submodule(name, body)
            names.append(name)
            reports.append(passes)
    return tuple(names), reports
