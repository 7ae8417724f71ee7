"""FlexMatch, FreeMatch, SoftMatch and AdaMatch over several steps, against formulas written here."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ptgm_fast.training.adaptive import fairness
from ptgm_fast.training.distributed import ProcessGroup
from ptgm_fast.training.pssl_options import PSSLOptions
from ptgm_fast.training.running_means import RunningMeans
from ptgm_fast.training.unlabelled import UnlabelledLoss

N, B, K = 48, 20, 6
DECAY, THRESHOLD = 0.2, 0.5
# What a step's formula gives: which samples count and how much [N], what is learned of them [N, K], another loss.
Step = tuple[Tensor, Tensor, Tensor]


def steps(count: int = 5) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Student, weak and labelled logits; the predictions favour some classes and become more confident."""
    generator = torch.Generator().manual_seed(0)
    favoured = torch.linspace(2, 0, K)
    for step in range(count):
        student, weak = (
            (1.5 + step / 2) * torch.randn(N, K, generator=generator) + favoured for _ in range(2)
        )
        yield student.requires_grad_(), weak, 3 * torch.randn(B, K, generator=generator)


def hard(p: Tensor) -> Tensor:
    return F.one_hot(p.argmax(1), K).float()


def flexmatch() -> Callable[..., Step]:
    share = [0.0] * K

    def step(student: Tensor, weak: Tensor, labelled: Tensor) -> Step:
        p = weak.softmax(1)
        unused = 1 - sum(share)
        beta = [s / max(*share, unused) for s in share]
        least = torch.tensor([THRESHOLD * b / (2 - b) for b in beta])
        counts = torch.tensor([float(row.max() >= least[row.argmax()]) for row in p])
        for k in range(K):
            chosen = [float(row.argmax() == k and row.max() >= THRESHOLD) for row in p]
            share[k] = DECAY * share[k] + (1 - DECAY) * sum(chosen) / N
        return counts, hard(p), torch.zeros(())

    return step


def freematch() -> Callable[..., Step]:
    state = {"t": 1 / K, "p": torch.full((K,), 1 / K), "h": torch.full((K,), 1 / K)}

    def step(student: Tensor, weak: Tensor, labelled: Tensor) -> Step:
        p = weak.softmax(1)
        for name, value in {"t": p.amax(1).mean(), "p": p.mean(0), "h": hard(p).mean(0)}.items():
            state[name] = DECAY * state[name] + (1 - DECAY) * value
        least = state["t"] * state["p"] / max(state["p"])
        counts = torch.tensor([float(row.max() >= least[row.argmax()]) for row in p])
        kept = student.softmax(1)[counts.bool()]
        histogram = hard(kept).mean(0)
        scale = torch.tensor([1 / h if h > 0 else 0.0 for h in histogram.tolist()])
        b = kept.mean(0) * scale
        a = state["p"] / state["h"]
        fair = (a / a.sum() * (b / b.sum() + 1e-12).log()).sum()
        return counts, hard(p), 0.3 * fair

    return step


def softmatch() -> Callable[..., Step]:
    state = {"m": 1 / K, "v": 1.0}
    mean: list[Tensor] = []

    def step(student: Tensor, weak: Tensor, labelled: Tensor) -> Step:
        p = weak.softmax(1)
        mean[:] = [DECAY * mean[0] + (1 - DECAY) * p.mean(0) if mean else p.mean(0)]
        aligned = p / K / mean[0]
        aligned /= aligned.sum(1, keepdim=True)
        confidence = aligned.amax(1)
        state["m"] = DECAY * state["m"] + (1 - DECAY) * confidence.mean()
        state["v"] = DECAY * state["v"] + (1 - DECAY) * confidence.var(unbiased=True)
        weights = [
            1.0 if c >= state["m"] else math.exp(-((c - state["m"]) ** 2) / (2 * state["v"] / 4))
            for c in confidence
        ]
        return torch.tensor(weights), hard(p), torch.zeros(())

    return step


def adamatch() -> Callable[..., Step]:
    state: dict[str, Tensor] = {}

    def step(student: Tensor, weak: Tensor, labelled: Tensor) -> Step:
        p, q = weak.softmax(1), labelled.softmax(1)
        for name, value in {"p": p.mean(0), "q": q.mean(0)}.items():
            state[name] = DECAY * state[name] + (1 - DECAY) * value if name in state else value
        aligned = p * state["q"] / state["p"]
        aligned /= aligned.sum(1, keepdim=True)
        counts = (aligned.amax(1) >= THRESHOLD * q.amax(1).mean()).float()
        # The cross-entropy minus the entropy of the target.
        entropy = -(aligned * aligned.log()).sum(1)
        return counts, aligned, -(counts * entropy).mean()

    return step


@pytest.mark.parametrize("formula", [flexmatch, freematch, softmatch, adamatch])
def test_losses_and_gradients_are_their_formulas(
    formula: Callable[[], Callable[..., Step]],
) -> None:
    method, plain = formula.__name__, formula()
    options = PSSLOptions.model_validate(
        {"method": method, "threshold": THRESHOLD, "average_decay": DECAY, "batch_norm": "concat"}
        | ({"fairness_weight": 0.3} if method == "freematch" else {})
    )
    ours = UnlabelledLoss(method, options, ProcessGroup())
    rates = []
    for student, weak, labelled in steps():
        loss, rate = ours(student, weak, torch.zeros(N, 3), labelled)
        counts, learned, other = plain(student, weak, labelled)
        cross_entropy = -(learned * student.log_softmax(1)).sum(1)
        expected = (counts * cross_entropy).mean() + other
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
        assert rate.item() == pytest.approx(counts.mean().item(), abs=1e-6)
        found, theirs = (torch.autograd.grad(v, student)[0] for v in (loss, expected))
        torch.testing.assert_close(found, theirs, rtol=1e-3, atol=1e-6)
        rates.append(rate.item())
    assert min(rates[1:]) < 1


@pytest.mark.parametrize("method", ["flexmatch", "freematch", "softmatch", "adamatch"])
def test_samples_that_are_not_kept_do_not_count(method: str) -> None:
    options = PSSLOptions.model_validate({"method": method, "batch_norm": "concat"})
    kept = torch.arange(N) % 3 > 0
    student, weak, labelled = next(steps())
    loss, rate = UnlabelledLoss(method, options, ProcessGroup())(
        student, weak, torch.zeros(N, 3), labelled, kept
    )
    (gradient,) = torch.autograd.grad(loss, student)
    assert not gradient[~kept].any()
    assert gradient[kept].any()
    assert 0 < rate.item() <= kept.float().mean().item()


def test_fairness_of_no_samples_is_nothing() -> None:
    means = RunningMeans(0.9, ProcessGroup())
    for name in ("predicted classes", "labels"):
        means.update(name, torch.full((K,), 1 / K, dtype=torch.float64))
    student = torch.randn(4, K, requires_grad=True)
    loss = fairness(student, torch.zeros(4, dtype=torch.bool), means)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_flexmatch_counts_everything_before_it_has_seen_anything() -> None:
    options = PSSLOptions(method="flexmatch", threshold=0.95)
    _, rate = UnlabelledLoss("flexmatch", options, ProcessGroup())(
        torch.zeros(4, K), torch.zeros(4, K), torch.zeros(4, 3), torch.zeros(B, K)
    )
    assert rate.item() == 1.0
