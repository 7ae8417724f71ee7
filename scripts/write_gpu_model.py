"""Write the table of GPU kernels in benchmarks/README.md: bytes, registers, and the minimum time to move the bytes.

Needs no GPU: the real call sites are compiled ahead of time, and the machine code is inspected.

    python scripts/write_gpu_model.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "kernels"))

from helpers import fake_driver, inspection  # noqa: E402
from helpers.fake_driver import Launch  # noqa: E402
from ptgm_fast.kernels.cond_norm_act import triton_impl as cond_norm_act  # noqa: E402
from ptgm_fast.kernels.consistency import triton_impl as consistency  # noqa: E402
from ptgm_fast.kernels.latents import triton_impl as latents  # noqa: E402
from ptgm_fast.kernels.pseudo_label import triton_impl as pseudo_label  # noqa: E402
from ptgm_fast.kernels.views import triton_impl as views  # noqa: E402
from ptgm_fast.kernels.views import view_parameters, view_preset  # noqa: E402

PAGE = ROOT / "benchmarks" / "README.md"
BEGIN, END = "<!-- gpu model: begin -->\n", "<!-- gpu model: end -->\n"
# GPU memory bandwidth in GB/s, from the vendor's data sheets (A100 80 GB SXM, H100 SXM, B200), and the target to compile for.
DEVICES = {"A100": (2039, "sm_80"), "H100": (3350, "sm_90"), "B200": (8000, "sm_100")}


@dataclass(frozen=True)
class Case:
    """One launch at a size. Bytes are reported per `unit`, of which there are `elements`."""

    name: str
    unit: str
    elements: int
    launch: Callable[[], object]


def image(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


def cases() -> Iterator[Case]:
    """The sizes of the CPU benchmarks in float32, and the image ops also in bfloat16, on torch's default device."""
    yield Case(
        "latents 256x128, truncated",
        "number",
        256 * 128,
        lambda: latents.latents(
            256, 128, 1, 0, None, 0.5, torch.float32, torch.get_default_device()
        ),
    )
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        yield norm_case(f"cond_norm_act 32x128x32x32, upsample, {name}", dtype, phases=False)
        yield norm_case(f"cond_norm_act 32x512x33x33, phases, {name}", dtype, phases=True)
    yield view_case("views 128x3x32x32, two", 128, 32, torch.float32)
    yield view_case("views 128x3x32x32 to 64x64, two", 128, 32, torch.float32, 64)
    yield view_case("views 64x3x128x128, two", 64, 128, torch.float32)
    yield view_case("views 64x3x128x128, two, to bfloat16", 64, 128, torch.bfloat16)
    yield Case(
        "pseudo_label 256x1000",
        "logit",
        256 * 1000,
        lambda: pseudo_label.pseudo_label(torch.empty(256, 1000), 1.0, 0.8),
    )
    for classes in (1000, 10):
        num = 256 if classes == 1000 else 64
        yield consistency_case(f"consistency uda and gradient, {num}x{classes}", num, classes)


def norm_case(name: str, dtype: torch.dtype, *, phases: bool) -> Case:
    x = image(32, 512, 33, 33, dtype=dtype) if phases else image(32, 128, 32, 32, dtype=dtype)
    affine = torch.empty(32, 128)

    def launch() -> Tensor:
        return cond_norm_act.cond_norm_act(x, affine, affine, None, "relu", not phases, phases)

    return Case(name, "output value", 32 * 128 * 64 * 64, launch)


def view_case(name: str, num: int, side: int, dtype: torch.dtype, made: int | None = None) -> Case:
    """made: the side of the views, if it differs from the images'."""
    made = made or side
    images, half = image(num, 3, side, side), [0.5] * 3
    size = {"channels": 3, "height": made, "width": made}
    packed = view_parameters(
        view_preset("strong"), num, seed=0, device=images.device, impl="reference", **size
    ).packed

    def launch() -> object:
        return views.views(images, packed, packed.clone(), half, half, dtype, (made, made))

    return Case(name, "pixel of a view", 2 * num * made * made, launch)


def consistency_case(name: str, num: int, classes: int) -> Case:
    weak, strong = torch.empty(2, num, classes)

    def launch() -> object:
        return consistency.consistency(
            weak, strong, None, None, "uda", 0.4, 0.8, gradient=True, fill=False
        )

    return Case(name, "pair of logits", num * classes, launch)


def bytes_of(launch: Launch) -> int:
    """The bytes of every tensor of a launch, counted once: the minimum memory traffic, with perfect caches."""
    tensors = {v.data_ptr(): v for v in launch.arguments.values() if isinstance(v, Tensor)}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def row(case: Case) -> str:
    registers, moved = [], 0
    for _, target in DEVICES.values():
        with fake_driver.compiling(target) as launches:
            case.launch()
        (launch,) = launches
        registers.append(str(inspection.resources(launch.kernel).registers))
        moved = bytes_of(launch)
    times = [f"{moved / bandwidth / 1000:.2f}" for bandwidth, _ in DEVICES.values()]
    amount = f"{moved / case.elements:.2f} a {case.unit}"
    return (
        f"| {case.name} | {amount} | {moved / 1e6:.2f} | {' / '.join(registers)} | "
        + " | ".join(times)
        + " |"
    )


def table() -> str:
    names = [f"{name} ({bandwidth:,} GB/s), µs" for name, (bandwidth, _) in DEVICES.items()]
    head = [
        "| kernel, size | bytes | MB | registers "
        + " / ".join(DEVICES)
        + " |"
        + "".join(f" {name} |" for name in names),
        "|---|---|---|---|" + "---|" * len(names),
    ]
    note = f"Compiled by Triton {triton.__version__}.\n"
    return "\n".join([note, *head, *(row(case) for case in cases())]) + "\n"


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(before + BEGIN + table() + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
