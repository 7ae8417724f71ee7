"""Helpers for the kernel tests: they interpret, guard and compile Triton kernels without a GPU.

Interpreting and compiling need separate processes, and neither may happen in pytest's own. So the checks of an op live in
files of plain functions named `check_*`, and the test module runs each file once in its own process:

    tests/kernels/<op>/interpreted.py     numerics and memory accesses, under Triton's interpreter
    tests/kernels/<op>/compiled.py        registers, spills and access widths of ahead-of-time builds

    # tests/kernels/test_<op>.py
    from helpers import isolated

    INTERPRETED = isolated.checks("<op>/interpreted.py", interpret=True)
    COMPILED = isolated.checks("<op>/compiled.py", interpret=False)

    @pytest.mark.parametrize("check", INTERPRETED.names)
    def test_interpreted(check: str) -> None:
        INTERPRETED.run(check)

Inside an interpreted file: call the op with impl="triton" on CPU tensors; `memory_guard.guard()` counts the accesses of
every launch in its block. bfloat16 rounds as on a device (`interpreter.patch` is already active), and arithmetic on
bfloat16 values that were not cast to float32 first is an error.

Inside a compiled file: call the op's launch function on CPU tensors under `fake_driver.compiling(target)`: Triton's own
specializer sees the real arguments; each launch is compiled for the target and recorded, but nothing runs.
`inspection.inspect(kernel)` then reports registers, spills and the width of each global access;
`inspection.build(...)` compiles a kernel from a written signature instead of a call.
"""
