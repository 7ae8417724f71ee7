"""`diffusers:DIR`: class-conditional DiT pipelines saved by diffusers (Peebles, Xie 2023, arXiv:2212.09748)."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptgm_fast.errors import MissingExtraError, UserError
from ptgm_fast.generators.adapted import AdaptedGenerator
from ptgm_fast.generators.card import AdapterCard, FileCard
from ptgm_fast.generators.files import find, read_json
from ptgm_fast.generators.request import Request
from ptgm_fast.generators.soft import mixing
from ptgm_fast.models.hub import local

SAMPLERS = {"ddim": "DDIMScheduler", "dpm-solver": "DPMSolverMultistepScheduler"}
# The decoder's activations are hundreds of times the size of its images.
DECODED_AT_ONCE = 16
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


class DiT(AdaptedGenerator):
    """Noise [N, C, H, W] -> latents by a deterministic sampler with classifier-free guidance -> images in [-1, 1].

    eps = eps(null) + guidance (eps(y) - eps(null)) for guidance > 1 (Ho, Salimans 2022, arXiv:2207.12598), in the first
    `guided_channels`; eps(y) in the others. With soft="mix-embedding", a soft label mixes the rows of every block's class
    embedding table.
    """

    card: AdapterCard

    def __init__(self, card: AdapterCard, transformer: Any, vae: Any, scheduler: Any) -> None:
        super().__init__()
        self.card, self.transformer, self.vae, self.scheduler = card, transformer, vae, scheduler
        self.null_class = transformer.config.num_embeds_ada_norm

    def example(
        self, truncation: float | None = None, *, num: int = 2, seed: int = 0
    ) -> tuple[Any, ...]:
        raise ValueError("a sampler calls its network at every step, so it is not a single graph")

    def synthesize(self, latents: Tensor, condition: Tensor, truncation: float | None) -> Tensor:
        steps, guidance = self.card.settings["steps"], self.card.settings["guidance"]
        if not len(latents):
            return latents.new_zeros(0, 3, self.card.image_size, self.card.image_size)
        self.scheduler.set_timesteps(steps)
        for time in self.scheduler.timesteps:
            scaled = self.scheduler.scale_model_input(latents, time)
            noise = self._noise(scaled, time, condition, guidance)
            latents = self.scheduler.step(noise, time, latents).prev_sample
        parts = (latents / self.vae.config.scaling_factor).split(DECODED_AT_ONCE)
        return torch.cat([self.vae.decode(part).sample for part in parts]).clamp(-1, 1)

    def _noise(self, x: Tensor, time: Tensor, condition: Tensor, guidance: float) -> Tensor:
        """The guided noise prediction, without the learned variance that some models add."""
        channels, guided = x.shape[1], guidance > 1
        null = torch.full((len(x),), self.null_class, device=x.device)
        if guided:
            x = torch.cat([x, x])
        # Passed by value: a copy from host memory would synchronize at every step.
        times = torch.full((len(x),), time.item(), dtype=time.dtype, device=x.device)
        with ExitStack() as stack:
            if condition.dim() == 2:
                weights = condition.to(x.dtype)
                rows = self.null_class + 1
                condition = stack.enter_context(mixing(self.transformer, weights, rows))
            labels = torch.cat([condition, null]) if guided else condition
            predicted = self.transformer(x, timestep=times, class_labels=labels).sample
        predicted = predicted[:, :channels]
        if not guided:
            return predicted
        with_class, without = predicted.chunk(2)
        number = self.card.settings["guided_channels"]
        noise = without + guidance * (with_class - without)
        return torch.cat([noise[:, :number], with_class[:, number:]], 1)


def load(request: Request) -> DiT:
    """Read a folder's transformer, VAE and scheduler; no code that the folder names is imported."""
    what, given = request.what, Path(request.target)
    sampler = request.choice("sampler", SAMPLERS, "ddim")
    steps, guidance = request.whole("steps", 50), request.number("guidance", 4.0)
    frequencies = request.choice("frequencies", ("diffusers", "meta"), "diffusers")
    guided_channels = request.whole("guided_channels", None)
    request.done()
    if not 1 <= steps <= 1000 or guidance < 0:
        raise UserError(f"{what}: steps must lie in [1, 1000] and guidance must not be negative")
    try:
        import diffusers
    except ImportError as error:
        raise MissingExtraError("a diffusers: generator", "diffusers", "diffusers") from error
    place = local(given, what=what)
    index = read_json(place / "model_index.json", what=what)
    if index.get("_class_name") != "DiTPipeline":
        raise UserError(
            f"{what}: a {index.get('_class_name')} is not supported; accepted: DiTPipeline (class-conditional)"
        )
    weights = find(place / "transformer", WEIGHTS, what=what)
    file = FileCard.of(weights, request.sha256, what=what)
    transformer = _component(diffusers.DiTTransformer2DModel, place / "transformer", what)
    vae = _component(diffusers.AutoencoderKL, place / "vae", what)
    if frequencies == "meta":
        # Of the time embedding: 10000^(-i / n), where diffusers has 10000^(-i / (n - 1)).
        for block in transformer.transformer_blocks:
            block.norm1.emb.time_proj.downscale_freq_shift = 0
    scheduler = getattr(diffusers, SAMPLERS[sampler]).from_config(
        read_json(place / "scheduler" / "scheduler_config.json", what=what)
    )
    config = transformer.config
    side = config.sample_size
    if guided_channels is None:
        guided_channels = config.in_channels
    if not 1 <= guided_channels <= config.in_channels:
        raise UserError(
            f"{what}: guided_channels must lie in [1, {config.in_channels}], got {guided_channels}"
        )
    upsampling = 2 ** (len(vae.config.block_out_channels) - 1)
    num_classes = config.num_embeds_ada_norm
    numbers = [str(i) for i in range(num_classes)]
    names = index.get("id2label")
    if not isinstance(names, dict) or not all(number in names for number in numbers):
        names = {number: number for number in numbers}
    card = request.card(
        name=given.name,
        architecture="diffusers:DiT",
        num_classes=num_classes,
        class_names=tuple(str(names[number]) for number in numbers),
        latent_dim=config.in_channels * side**2,
        grid=(config.in_channels, side, side),
        image_size=side * upsampling,
        channels=vae.config.out_channels,
        condition="class-index",
        truncation="none",
        soft=request.soft,
        soft_seed=request.soft_seed,
        settings={
            "sampler": sampler,
            "steps": steps,
            "guidance": guidance,
            "guided_channels": guided_channels,
            "frequencies": frequencies,
        },
        files={f"transformer/{weights.name}": file},
    )
    return DiT(card, transformer, vae, scheduler)


def _component(kind: Any, folder: Path, what: str) -> Any:
    """Load a folder's model strictly. diffusers reads safetensors, or pickles with weights_only=True."""
    path = find(folder, WEIGHTS, what=what)
    try:
        model, found = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=path.suffix == ".safetensors",
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except Exception as error:  # diffusers raises several unrelated types
        raise UserError(f"{what}: {str(folder)!r} cannot be loaded ({error})") from error
    titles = {
        "missing_keys": "missing",
        "unexpected_keys": "unexpected",
        "mismatched_keys": "of the wrong shape",
    }
    problems = [
        f"{title}: {', '.join(sorted(map(str, found[key]))[:6])}"
        for key, title in titles.items()
        if found.get(key)
    ]
    if problems:
        raise UserError(f"{what}: {str(folder)!r} does not fit its config.\n" + "\n".join(problems))
    return model
