"""Part 4: a frozen BigGAN-deep, batch 256: original, rewritten, captured and compiled, in each precision."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from device import DEVICE, ON_GPU, PRECISIONS, beside, peak_gib, precision, seconds
from records import Found, Job
from torch import Tensor, nn

beside("benchmarks", "tests/engine")

from networks import LAYERS  # noqa: E402

from ptgm_fast import generators  # noqa: E402
from ptgm_fast.engine import CapturedStep  # noqa: E402
from ptgm_fast.generators.adapters.biggan_deep import (  # noqa: E402
    BigGANDeepConfig,
    BigGANDeepNetwork,
)
from ptgm_fast.models import save_weights  # noqa: E402

TRUNCATION = 0.4
# The largest accepted distance from float64, |y - y64| / |y64|; up to twice the original's distance is accepted, too: random
# weights are harder than trained ones, for which the tests use the same bounds.
TOLERANCES = {"float32": 1e-5, "tf32": 2e-3, "bfloat16": 1e-2}


def config(dry: bool) -> BigGANDeepConfig:
    narrow = [(True, 16, 8), (False, 8, 4), (False, 4, 2), (False, 2, 1)]
    size, width = (8, 4) if dry else (128, 128)
    return BigGANDeepConfig(output_dim=size, z_dim=width, class_embed_dim=width, channel_width=width, num_classes=6 if dry else 1000,
                            layers=tuple(narrow if dry else LAYERS), attention_layer_position=8, eps=1e-4, n_stats=51)  # fmt: skip


def network(dry: bool) -> BigGANDeepNetwork:
    """The generator with random weights: its speed does not depend on training."""
    torch.manual_seed(0)
    made = BigGANDeepNetwork(config(dry)).eval().requires_grad_(False)
    for name, value in made.state_dict().items():
        if name.endswith("gamma"):
            value.fill_(0.7)
        elif value.dim() == 4:
            nn.init.kaiming_normal_(value)
    return made


def folder_of(path: Path, dry: bool) -> Path:
    """Write the same network as a folder that `biggan-deep:` reads."""
    path.mkdir()
    made = config(dry)
    (path / "config.json").write_text(made.model_dump_json())
    whole = nn.Module()
    whole.generator = network(dry)
    whole.embeddings = nn.Linear(made.num_classes, made.class_embed_dim, bias=False)
    save_weights(whole, path / "model.safetensors")
    return path


class Forms:
    """The generator in each of the timed forms, as a function of the condition."""

    def __init__(self, dry: bool) -> None:
        torch.manual_seed(1)
        self.dry, size = dry, 2 * config(dry).z_dim
        self.batch = 4 if dry else 256
        self.condition = torch.randn(self.batch, size, device=DEVICE)
        self.original = network(dry).to(DEVICE)

    @cached_property
    def channels_last(self) -> nn.Module:
        return network(self.dry).to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @cached_property
    def rewritten(self) -> nn.Module:
        done = generators.optimize(self.original, example=(self.condition[:2], TRUNCATION))
        assert done.left is None, done.left
        return done.module

    @property
    def captured(self) -> Callable[..., Any]:
        options: dict[str, Any] = {}
        if not ON_GPU:
            from graphs import StandInForCudaGraphs

            options["cuda"] = StandInForCudaGraphs()
        step = CapturedStep(lambda z: self.rewritten(z, TRUNCATION), DEVICE, **options)
        return lambda z, _: step(z)

    @property
    def compiled(self) -> Callable[..., Any]:
        return self._compiled("default")

    @property
    def max_autotune(self) -> Callable[..., Any]:
        return self._compiled("max-autotune-no-cudagraphs")

    def _compiled(self, mode: str) -> Callable[..., Any]:
        torch.compiler.reset()
        return torch.compile(self.rewritten, dynamic=False, mode=mode)


def main() -> None:
    job = Job(__doc__ or "")
    forms = Forms(job.dry)
    originals: dict[str, float] = {}

    @cache
    @torch.no_grad()
    def exact() -> Tensor:
        return network(job.dry).to(DEVICE).double()(forms.condition[:8].double(), TRUNCATION)

    @torch.no_grad()
    def timed(form: str, name: str) -> Found:
        with precision(name):
            module = getattr(forms, form)

            def call() -> Tensor:
                made: Tensor = module(forms.condition, TRUNCATION)
                return made

            made = call()[:8].double()
            apart = ((made - exact()).norm() / exact().norm()).item()
            allowed = max(TOLERANCES[name], 2 * originals.setdefault(name, apart))
            assert apart <= allowed, (
                f"{apart:.1e} from float64, relative norm; {allowed:.1e} is taken"
            )
            each, peak = seconds(call, calls=3 if job.dry else 10, warm_ups=2), peak_gib(call)
        rate = forms.batch / each
        facts = {"seconds": each, "images_per_second": rate, "peak_gib": peak, "apart": apart}
        return f"{1e3 * each:.2f} ms, {rate:,.0f} images/s, {peak:.1f} GiB, {apart:.0e} from float64", facts  # fmt: skip

    # The forms that take longest to build come last, in the most important precisions only.
    rows = [(f, p) for p in PRECISIONS for f in ("original", "rewritten", "captured", "channels_last")]  # fmt: skip
    rows += [("compiled", p) for p in ("bfloat16", "tf32")] if not job.dry else []
    rows += [("max_autotune", p) for p in ("bfloat16", "tf32")] if not job.dry else []
    for form, name in rows:
        needs = {"compiled": 60.0, "max_autotune": 120.0}.get(form, 10.0)
        title = f"{form.replace('_', ' ')}, {name}"
        job.check(title, lambda form=form, name=name: timed(form, name), needs=needs)  # type: ignore[misc]


if __name__ == "__main__":
    main()
