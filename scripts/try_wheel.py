"""Check that the installed package is complete: its extension loads, and an op matches its plain reference.

cibuildwheel runs this on every wheel, outside the checkout: python scripts/try_wheel.py
"""

import torch

from ptgm_fast import generators, kernels
from ptgm_fast.kernels import dispatch


def main() -> None:
    missing = dispatch.extension_missing()
    assert not missing, missing
    logits = torch.randn(2, 33, 100, generator=torch.Generator().manual_seed(0))
    ours, reference = (kernels.consistency(*logits, impl=name) for name in ("cpu", "reference"))
    assert torch.allclose(ours, reference, atol=1e-5), f"{ours} is not {reference}"
    letters = generators.load("letters")
    latents = kernels.latents(4, letters.card.latent_dim, seed=0, start=0)
    images = letters.generate(latents, torch.arange(4))
    assert images.shape == (4, 1, 28, 28)
    print("the wheel is complete")


if __name__ == "__main__":
    main()
