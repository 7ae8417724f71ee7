"""`consistency` as an op: torch.library, torch.compile, other tracers, checkpointing, forked workers, errors."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from helpers.consistency_cases import logits
from ptgm_fast.kernels import consistency, dispatch
from ptgm_fast.kernels.consistency import METHODS, _consistency

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NO_EXTENSION = dispatch.why_not("consistency", "cpu", "cpu")
NAN = float("nan")


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("extras", [True, False])
def test_opcheck(impl: str, extras: bool, gradient: bool) -> None:
    for dtype, method in zip((*DTYPES, torch.float32), METHODS, strict=True):
        weak = logits((5, 20), dtype)
        strong = logits((5, 20), dtype, seed=1).requires_grad_(gradient)
        thresholds, weight = (torch.rand(20), torch.rand(5)) if extras else (None, None)
        options = (thresholds, weight, method, 0.5, 0.5, gradient, impl)
        torch.library.opcheck(_consistency.op, (weak, strong, *options))


@pytest.mark.parametrize("method", METHODS)
def test_compiles_whole_and_once(impl: str, method: str) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter)
    def compiled(weak: Tensor, strong: Tensor) -> Tensor:
        return consistency(weak, strong * 2, method=method, threshold=0.3, impl=impl).mean()

    for seed in range(3):
        weak, strong = logits((11, 60), seed=seed), logits((11, 60), seed=seed + 9).requires_grad_()
        loss = compiled(weak, strong)
        (actual,) = torch.autograd.grad(loss, strong)
        eager = consistency(weak, strong * 2, method=method, threshold=0.3, impl=impl).mean()
        (expected,) = torch.autograd.grad(eager, strong)
        torch.testing.assert_close(loss, eager)
        torch.testing.assert_close(actual, expected)
    assert counter.frame_count == 1


def test_works_under_other_tracers() -> None:
    weak, strong = logits((4, 6)), logits((4, 6), seed=1)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) for t in (weak, strong)]
        loss = consistency(fakes[0], fakes[1].requires_grad_())
        assert loss.shape == (4,)
        (gradient,) = torch.autograd.grad(loss.sum(), fakes[1])
        assert gradient.shape == (4, 6)
    traced = make_fx(lambda w, s: consistency(w, s))(weak, strong)
    assert torch.equal(traced(weak, strong), consistency(weak, strong))


def test_can_be_checkpointed(impl: str) -> None:
    weak, strong = logits((6, 5)), logits((6, 5), seed=1).requires_grad_()

    def loss(s: Tensor) -> Tensor:
        return consistency(weak, s * 2, threshold=0.1, impl=impl).sum()

    expected = torch.autograd.grad(loss(strong), strong)[0]
    again = checkpoint(loss, strong, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(again, strong)[0], expected)


@pytest.mark.skipif(sys.platform == "win32" or bool(NO_EXTENSION), reason=NO_EXTENSION or "no fork")
def test_a_forked_process_does_not_hang() -> None:
    # torch's own parallel operations would hang in the child, so bytes are compared. The alarm kills a child that hangs.
    code = """
import os, signal, torch
from ptgm_fast import kernels
torch.set_num_threads(2)
weak, strong = torch.randn(512, 1000) * 9, torch.randn(512, 1000, requires_grad=True)
def results():
    loss = kernels.consistency(weak, strong, threshold=0.1, impl="cpu")
    (gradient,) = torch.autograd.grad(loss, strong, torch.ones(512))
    labels = kernels.pseudo_label(weak, impl="cpu").labels
    return [t.detach().numpy().tobytes() for t in (loss, gradient, labels)]
expected = results()
child = os.fork()
if child == 0:
    signal.alarm(60)
    os._exit(0 if results() == expected else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "0", done.stdout + done.stderr


# Refused arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "mae"}, "unknown method 'mae'; accepted: uda, fixmatch"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"temperature": NAN}, "temperature must be positive"),
        ({"threshold": 1.5}, r"threshold must lie in \[0, 1\], got 1.5"),
        ({"threshold": -0.1, "method": "mse"}, r"threshold must lie in \[0, 1\]"),
        ({"strong_logits": torch.zeros(4, 4)}, r"\[N, C\] with C >= 1, got \[4, 3\] and \[4, 4\]"),
        ({"strong_logits": torch.zeros(4, 3).long()}, "must be floats, got torch.float32 and"),
        (
            {"class_thresholds": torch.zeros(4)},
            r"class_thresholds must be \[C\] = \[3\], got \[4\]",
        ),
        ({"sample_weight": torch.zeros(3)}, r"sample_weight must be \[N\] = \[4\], got \[3\]"),
        ({"impl": "cuda"}, "unknown implementation 'cuda'; accepted: reference, cpu, triton"),
    ],
    ids=lambda v: None if isinstance(v, str) else "-".join(v),
)
def test_refused(options: dict[str, Any], message: str) -> None:
    arguments = {"weak_logits": torch.zeros(4, 3), "strong_logits": torch.zeros(4, 3)} | options
    with pytest.raises(ValueError, match=message):
        consistency(arguments.pop("weak_logits"), arguments.pop("strong_logits"), **arguments)


def test_ranks_and_empty_rows_are_refused() -> None:
    for shape in ((5,), (2, 3, 4), (4, 0)):
        with pytest.raises(ValueError, match=r"must both be \[N, C\] with C >= 1"):
            consistency(torch.zeros(shape), torch.zeros(shape))
