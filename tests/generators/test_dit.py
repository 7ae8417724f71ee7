"""DiT against diffusers' own pipeline, on a tiny saved one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ptgm_fast import generators
from ptgm_fast.errors import UserError
from ptgm_fast.generators.adapters import dit

diffusers = pytest.importorskip("diffusers")


def made(folder: Path, num_classes: int) -> None:
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=num_classes,
    )
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )
    pipeline = diffusers.DiTPipeline(transformer.eval(), vae.eval(), diffusers.DDIMScheduler())
    pipeline.save_pretrained(folder)


# The pipeline's null class is 1000 for any model; with another number of classes, guidance is compared without it.
@pytest.mark.parametrize("sampler", ["ddim", "dpm-solver"])
@pytest.mark.parametrize(
    ("num_classes", "guidance"), [(1000, 3.0), (7, 1.0)], ids=["guided", "plain"]
)
def test_equals_the_pipeline(
    sampler: str, num_classes: int, guidance: float, tmp_path: Path
) -> None:
    made(tmp_path, num_classes)
    pipeline = diffusers.DiTPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    if sampler == "dpm-solver":
        pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
            pipeline.scheduler.config
        )
    ours = generators.load(f"diffusers:{tmp_path}?sampler={sampler}&steps=4&guidance={guidance}")
    expected = pipeline(
        [1, 6],
        guidance_scale=guidance,
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(3),
        output_type="pt",
    ).images
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found = ours.generate(noise, torch.tensor([1, 6]))
    assert expected.std() > 0.01
    torch.testing.assert_close(found / 2 + 0.5, expected, atol=1e-5, rtol=0)
    assert (ours.card.latent_shape, ours.card.image_size) == ((4, 8, 8), 16)


def test_soft_labels_mix_the_class_embeddings(tmp_path: Path) -> None:
    made(tmp_path, 7)
    uri = f"diffusers:{tmp_path}?steps=2&guidance=2"
    noise, labels = torch.randn(2, 4, 8, 8), torch.tensor([1, 6])
    one_hot = F.one_hot(labels, 7).float()
    with pytest.raises(UserError, match="never hardened silently"):
        generators.load(uri).generate(noise, one_hot)
    ours = generators.load(uri, soft="mix-embedding")
    with torch.no_grad():
        by_class = ours.generate(noise, labels)
        torch.testing.assert_close(ours.generate(noise, one_hot), by_class, atol=1e-5, rtol=0)
        # A mixture equals a class whose row in every table is that mixture.
        soft = torch.softmax(torch.randn(1, 7), 1).expand(2, 7)
        mixed = ours.generate(noise, soft)
        for block in ours.transformer.transformer_blocks:
            table = block.norm1.emb.class_embedder.embedding_table.weight
            table[0] = soft[0] @ table[:7]
        expected = ours.generate(noise, torch.tensor([0, 0]))
    torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=0)
    assert (mixed - by_class).abs().max() > 1e-3


def test_images_are_decoded_some_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder's activations are about a hundred times as large as its images and would limit the batch size."""
    made(tmp_path, 7)
    ours, sizes = generators.load(f"diffusers:{tmp_path}?steps=1&guidance=1"), []
    ours.vae.decoder.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    noise, labels = torch.randn(5, 4, 8, 8), torch.arange(5)
    with torch.no_grad():
        whole = ours.generate(noise, labels)
        monkeypatch.setattr(dit, "DECODED_AT_ONCE", 2)
        parts = ours.generate(noise, labels)
    assert sizes == [5, 2, 2, 1]
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)


def latents_of(uri: str, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """What the sampler passes to the decoder."""
    ours, seen = generators.load(uri), []
    ours.vae.post_quant_conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        ours.generate(noise, labels)
    return torch.cat(seen)


def test_guidance_of_some_channels(tmp_path: Path) -> None:
    """Meta's code guides three of four; one step of the sampler keeps the channels apart."""
    made(tmp_path, 7)
    noise, labels = torch.randn(2, 4, 8, 8), torch.tensor([1, 6])
    uri = f"diffusers:{tmp_path}?steps=1&guidance="
    all_guided, none, some = (
        latents_of(f"{uri}{options}", noise, labels)
        for options in ("3", "1", "3&guided_channels=3")
    )
    torch.testing.assert_close(some[:, :3], all_guided[:, :3])
    torch.testing.assert_close(some[:, 3:], none[:, 3:])
    assert (all_guided - none)[:, 3:].abs().max() > 1e-3
    with pytest.raises(UserError, match=r"guided_channels must lie in \[1, 4\]"):
        generators.load(f"{uri}3&guided_channels=5")


def test_frequencies_of_time(tmp_path: Path) -> None:
    made(tmp_path, 7)
    time, half = torch.tensor([0.0, 3.0, 999.0]), 128
    for frequencies, last in (("diffusers", half - 1), ("meta", half)):
        ours = generators.load(f"diffusers:{tmp_path}?frequencies={frequencies}")
        angles = time[:, None] * 10000 ** (-torch.arange(half) / last)
        expected = torch.cat([angles.cos(), angles.sin()], 1)
        for block in ours.transformer.transformer_blocks:
            found = block.norm1.emb.time_proj(time)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_class_names_of_the_pipeline(tmp_path: Path) -> None:
    made(tmp_path, 7)
    assert generators.load(f"diffusers:{tmp_path}").card.class_names == tuple("0123456")
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["id2label"] = {str(i): f"a {name}" for i, name in enumerate("ABCDEFG")}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert generators.load(f"diffusers:{tmp_path}").card.class_names[2] == "a C"


def test_mistakes(tmp_path: Path) -> None:
    made(tmp_path, 7)
    with pytest.raises(UserError, match="sampler = 'euler' is unknown; accepted: ddim, dpm-solver"):
        generators.load(f"diffusers:{tmp_path}?sampler=euler")
    with pytest.raises(UserError, match="steps must lie in"):
        generators.load(f"diffusers:{tmp_path}?steps=0")
    from safetensors.torch import load_file, save_file

    path = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    del state["proj_out_2.bias"]
    save_file(state, path)
    with pytest.raises(UserError, match=r"missing: proj_out_2\.bias"):
        generators.load(f"diffusers:{tmp_path}")
    (tmp_path / "model_index.json").write_text('{"_class_name": "os.system"}')
    with pytest.raises(UserError, match=r"a os\.system is not supported"):
        generators.load(f"diffusers:{tmp_path}")


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    made(tmp_path, 7)
    folder, sign = tmp_path / "transformer", tmp_path / "ran"

    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(sign),)

    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"proj_out_2.bias": Malicious()}, folder / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded"):
        generators.load(f"diffusers:{tmp_path}")
    assert not sign.exists()
