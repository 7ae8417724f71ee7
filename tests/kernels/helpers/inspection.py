"""Inspection of compiled kernels: registers, spills, and the global accesses in the machine code.

    found = resources(launch.kernel)                           # a tenth of a second
    assert found.spilled_bytes == 0 and found.registers <= 64
    report = inspect(launch.kernel)                            # disassembles: half a second for an NVIDIA kernel
    assert report.spills == 0 and report.registers <= 64
    assert report.load_widths == {16: 4}                       # four 128-bit loads per thread, nothing narrower
    assert report.bytes_stored(programs=1) == 2048 * 4         # bytes of one program, all threads together

Counts are of the code, once each: exact where the code is straight; a loop's body counts once, and the arms of a branch
count both. `num_operations(kernel, "tt.load")` counts in Triton's IR before loops are unrolled.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.compiler import ASTSource, CompiledKernel
from triton.compiler import compile as triton_compile

from .fake_driver import TARGETS

# .U8/.S8/.U16/.S16 name the width; a plain LDG is 32 bits wide.
# LDGSTS is an asynchronous copy from global to shared memory.
_SASS = re.compile(r"\b(LDG|LDGSTS|STG|LDL|STL|ATOMG|RED)\b((?:\.\w+)*)")
_SASS_WIDTH = re.compile(r"\.(?:U|S)?(8|16|64|128|256)\b")
_PTX_ATOMICS = re.compile(r"\b(?:atom|red)\.")
_AMD = re.compile(r"\b(?:global|buffer|flat)_(load|store|atomic)_(\w+)")
_AMD_BYTES = {"ubyte": 1, "sbyte": 1, "byte": 1, "ushort": 2, "sshort": 2, "short": 2}


@dataclass(frozen=True)
class Report:
    """Per thread: registers, spill instructions, and {bytes of an access: number of such instructions}."""

    target: str
    registers: int
    spills: int
    shared_bytes: int
    threads: int
    load_widths: dict[int, int]
    store_widths: dict[int, int]
    num_atomics: int

    def bytes_loaded(self, programs: int = 1) -> int:
        """Bytes loaded by all threads of this many programs, ignoring masks and replication between threads."""
        return programs * self.threads * sum(width * n for width, n in self.load_widths.items())

    def bytes_stored(self, programs: int = 1) -> int:
        """The same for stores."""
        return programs * self.threads * sum(width * n for width, n in self.store_widths.items())


@dataclass(frozen=True)
class Resources:
    """What a thread takes, and the atomics, without the machine code's accesses."""

    target: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    num_atomics: int


def build(
    fn: Any,
    signature: dict[str, str],
    constexprs: dict[str, Any],
    target: str,
    divisible_by_16: tuple[str, ...] = (),
    num_warps: int = 4,
    **options: Any,
) -> CompiledKernel:
    """Compile a kernel ahead of time from a written signature, e.g. {"x_ptr": "*bf16", "n": "i32"}, for one of TARGETS.

    divisible_by_16: the arguments that Triton's specializer would find divisible (pointers of fresh tensors, round sizes).
    """
    full = {name: "constexpr" if name in constexprs else signature[name] for name in fn.arg_names}
    attributes = {
        (fn.arg_names.index(name),): [["tt.divisibility", 16]] for name in divisible_by_16
    }
    source = ASTSource(fn=fn, signature=full, constexprs=constexprs, attrs=attributes)
    return triton_compile(
        source, target=TARGETS[target], options={"num_warps": num_warps, **options}
    )


def resources(kernel: CompiledKernel) -> Resources:
    """Read registers and spills from what the compiler says of its machine code, which is not disassembled."""
    if kernel.metadata.target.backend == "hip":
        report = _inspect_amd(kernel)
        # 4 bytes each.
        spilled = 4 * report.spills
        return Resources(
            report.target, report.registers, spilled, report.shared_bytes, report.num_atomics
        )
    usage = _nvidia_usage(kernel.asm["cubin"])
    return Resources(
        target=f"sm_{kernel.metadata.target.arch}",
        registers=usage["REG"],
        # The stack holds what did not fit into registers, and nothing else in these kernels.
        spilled_bytes=usage["STACK"] + usage["LOCAL"],
        shared_bytes=kernel.metadata.shared,
        num_atomics=len(_PTX_ATOMICS.findall(kernel.asm["ptx"])),
    )


def inspect(kernel: CompiledKernel) -> Report:
    """Read registers, spills and accesses from the machine code."""
    if kernel.metadata.target.backend == "hip":
        return _inspect_amd(kernel)
    return _inspect_nvidia(kernel)


def num_operations(kernel: CompiledKernel, operation: str) -> int:
    """Count an operation ("tt.load", "tt.store", "tt.dot") in the kernel's Triton GPU IR."""
    return len(re.findall(rf"\b{re.escape(operation)}\b", kernel.asm["ttgir"]))


def num_instructions(kernel: CompiledKernel, mnemonic: str) -> int:
    """Count an instruction (a regular expression: "FFMA", r"MUFU\\.EX2") in the machine code."""
    text = kernel.asm["amdgcn"] if kernel.metadata.target.backend == "hip" else kernel.asm["sass"]
    return len(re.findall(rf"\b{mnemonic}\b", text))


def _inspect_nvidia(kernel: CompiledKernel) -> Report:
    counts: dict[str, Counter[int]] = {}
    for opcode, modifiers in _SASS.findall(kernel.asm["sass"]):
        width = _SASS_WIDTH.search(modifiers + " ")
        counts.setdefault(opcode, Counter())[int(width.group(1)) // 8 if width else 4] += 1
    return Report(
        target=f"sm_{kernel.metadata.target.arch}",
        registers=_nvidia_usage(kernel.asm["cubin"])["REG"],
        # Local memory holds what did not fit into registers, and nothing else in these kernels.
        spills=sum(counts.get("LDL", {}).values()) + sum(counts.get("STL", {}).values()),
        shared_bytes=kernel.metadata.shared,
        threads=kernel.metadata.num_warps * 32,
        load_widths=dict(counts.get("LDG", Counter()) + counts.get("LDGSTS", Counter())),
        store_widths=dict(counts.get("STG", {})),
        num_atomics=sum(counts.get("ATOMG", {}).values()) + sum(counts.get("RED", {}).values()),
    )


def _nvidia_usage(cubin: bytes) -> dict[str, int]:
    """Registers and bytes of a thread: REG, STACK, LOCAL and others."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", output)}
    assert found.keys() >= {"REG", "STACK", "LOCAL"}, f"not in cuobjdump's output: {output}"
    return found


def _inspect_amd(kernel: CompiledKernel) -> Report:
    text = kernel.asm["amdgcn"]

    def field(name: str) -> int:
        found = re.search(rf"\.{name}:\s*(\d+)", text)
        assert found, f"no {name} in the AMD assembly"
        return int(found.group(1))

    widths: dict[str, Counter[int]] = {"load": Counter(), "store": Counter(), "atomic": Counter()}
    for kind, suffix in _AMD.findall(text):
        widths[kind][_amd_bytes(suffix)] += 1
    return Report(
        target=str(kernel.metadata.target.arch),
        registers=field("vgpr_count"),
        spills=field("vgpr_spill_count") + field("sgpr_spill_count"),
        shared_bytes=kernel.metadata.shared,
        threads=kernel.metadata.num_warps * kernel.metadata.target.warp_size,
        load_widths=dict(widths["load"]),
        store_widths=dict(widths["store"]),
        num_atomics=sum(widths["atomic"].values()),
    )


def _amd_bytes(suffix: str) -> int:
    # dword, dwordx4, ushort, ubyte_d16, b128, b32_...
    first = suffix.split("_")[0]
    if first in _AMD_BYTES:
        return _AMD_BYTES[first]
    if first.startswith("dword"):
        return 4 * int(first.removeprefix("dwordx") or 1) if first != "dword" else 4
    if bits := re.fullmatch(r"[biuf](\d+)", first):
        return int(bits.group(1)) // 8
    return 4
