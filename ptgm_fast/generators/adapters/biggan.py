"""`biggan:FILE`: the generator in BigGAN-PyTorch's layout (Brock et al. 2019, arXiv:1809.11096, appendix B, figure 15)."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptgm_fast import kernels
from ptgm_fast.errors import UserError
from ptgm_fast.generators.adapted import AdaptedGenerator
from ptgm_fast.generators.card import AdapterCard, FileCard
from ptgm_fast.generators.files import read_weights
from ptgm_fast.generators.request import Request
from ptgm_fast.models.checkpoints import split_choice
from ptgm_fast.models.weights import load_state


class StoredNorm(nn.Module):
    """(x - stored_mean) / sqrt(stored_var + eps) * gain + bias; gain = 1 + gain(c), bias(c) linear in c if given."""

    def __init__(self, channels: int, condition_dim: int | None, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("stored_mean", torch.zeros(channels))
        self.register_buffer("stored_var", torch.ones(channels))
        self.gain: nn.Linear | nn.Parameter
        self.bias: nn.Linear | nn.Parameter
        if condition_dim is None:
            self.gain, self.bias = (nn.Parameter(torch.ones(channels)) for _ in range(2))
        else:
            self.gain, self.bias = (
                nn.Linear(condition_dim, channels, bias=False) for _ in range(2)
            )

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        mean, variance = self.get_buffer("stored_mean"), self.get_buffer("stored_var")
        if isinstance(self.gain, nn.Linear) and isinstance(self.bias, nn.Linear):
            normal = F.batch_norm(x, mean, variance, eps=self.eps)
            gain = 1 + self.gain(condition)
            return normal * gain[:, :, None, None] + self.bias(condition)[:, :, None, None]
        assert isinstance(self.gain, nn.Parameter)
        assert isinstance(self.bias, nn.Parameter)
        return F.batch_norm(x, mean, variance, self.gain, self.bias, eps=self.eps)


class Block(nn.Module):
    """Norm, ReLU, 2x upsampling, 3x3; norm, ReLU, 3x3; plus an upsampled 1x1 shortcut."""

    def __init__(self, inputs: int, outputs: int, condition_dim: int, eps: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_sc = nn.Conv2d(inputs, outputs, 1)
        self.bn1 = StoredNorm(inputs, condition_dim, eps)
        self.bn2 = StoredNorm(outputs, condition_dim, eps)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        hidden = F.interpolate(F.relu(self.bn1(x, condition)), scale_factor=2)
        hidden = self.conv2(F.relu(self.bn2(self.conv1(hidden), condition)))
        return hidden + self.conv_sc(F.interpolate(x, scale_factor=2))


def attend(
    x: Tensor, theta: nn.Conv2d, phi: nn.Conv2d, g: nn.Conv2d, out: nn.Conv2d, gain: Tensor
) -> Tensor:
    """x + gain * out(softmax(theta(x)^T phi(x)) g(x)), keys and values max-pooled 2x.

    x [N, C, H, W], H and W even. Zhang et al. 2019 (arXiv:1805.08318), with the pooling of Brock et al. 2019
    (arXiv:1809.11096, appendix B).
    """
    queries = theta(x).flatten(2)
    keys = F.max_pool2d(phi(x), 2).flatten(2)
    values = F.max_pool2d(g(x), 2)
    weights = torch.softmax(queries.transpose(1, 2) @ keys, -1)
    mixed = values.flatten(2) @ weights.transpose(1, 2)
    mixed = mixed.view(x.shape[0], values.shape[1], x.shape[2], x.shape[3])
    return x + gain * out(mixed)


class Attention(nn.Module):
    """`attend` under this layout's names."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta = nn.Conv2d(channels, channels // 8, 1, bias=False)
        self.phi = nn.Conv2d(channels, channels // 8, 1, bias=False)
        self.g = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.o = nn.Conv2d(channels // 2, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return attend(x, self.theta, self.phi, self.g, self.o, self.gamma)


class BigGAN(AdaptedGenerator):
    """BigGAN with a shared class embedding e, or with a separate table in every norm, where e is the label vector.

    With `chunk` > 0, the latents are split hierarchically: the first chunk makes the 4x4 map, and chunk i + 1 joins e in
    the condition of block i. Otherwise, the condition is e alone.
    """

    def __init__(
        self, card: AdapterCard, widths: list[tuple[int, int, bool]], chunk: int, eps: float
    ) -> None:
        super().__init__()
        self.card, self.chunk = card, chunk
        first, width = widths[0][0], card.embedding_dim or card.num_classes
        if card.embedding_dim:
            self.shared = nn.Embedding(card.num_classes, card.embedding_dim)
        self.linear = nn.Linear(chunk or card.latent_dim, first * 16)
        self.blocks = nn.ModuleList()
        for inputs, outputs, attention in widths:
            parts: list[nn.Module] = [Block(inputs, outputs, width + chunk, eps)]
            self.blocks.append(nn.ModuleList(parts + [Attention(outputs)] * attention))
        last = widths[-1][1]
        self.output_layer = nn.Sequential(
            StoredNorm(last, None, 1e-5), nn.ReLU(), nn.Conv2d(last, 3, 3, padding=1)
        )

    @property
    def class_table(self) -> Tensor | None:
        return self.shared.weight if self.card.embedding_dim else None

    def forward(self, latents: Tensor, embedding: Tensor) -> Tensor:
        """Images from latents [N, latent_dim] and class embeddings [N, D], or labels [N, K] without shared embeddings."""
        first, *rest = latents.split(self.chunk, 1) if self.chunk else (latents,)
        # No len(): torch.export would specialize on the example's batch size.
        hidden = self.linear(first).view(latents.shape[0], -1, 4, 4)
        for index, block in enumerate(self.blocks):
            condition = torch.cat([embedding, rest[index]], 1) if rest else embedding
            assert isinstance(block, nn.ModuleList)
            for part in block:
                hidden = part(hidden, condition)
        return torch.tanh(self.output_layer(hidden))


@torch.no_grad()
def collect_statistics(generator: BigGAN, batches: int = 16, size: int = 64) -> None:
    """Standing statistics (Brock et al. 2019, arXiv:1809.11096, section 4): each norm's statistics become the means over
    several batches, with latents from N(0, I) and all classes in turn; each batch is normalized by its own statistics."""
    norms = [part for part in generator.modules() if isinstance(part, StoredNorm)]
    stored = {n: (n.get_buffer("stored_mean"), n.get_buffer("stored_var")) for n in norms}
    totals = {norm: [torch.zeros_like(part) for part in stored[norm]] for norm in norms}

    def use_own(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, StoredNorm)
        variance, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
        for part, total, own in zip(stored[norm], totals[norm], (mean, variance), strict=True):
            part.copy_(own)
            total += own

    handles = [norm.register_forward_pre_hook(use_own) for norm in norms]
    card = generator.card
    for start in range(0, batches * size, size):
        labels = torch.arange(start, start + size) % card.num_classes
        generator.generate(kernels.latents(size, card.latent_dim, seed=0, start=start), labels)
    for handle in handles:
        handle.remove()
    for norm in norms:
        for part, total in zip(stored[norm], totals[norm], strict=True):
            part.copy_(total / batches)


def bake_power_iteration(state: dict[str, Tensor], *, eps: float, where: str) -> dict[str, Tensor]:
    """Bake BigGAN-PyTorch's spectral norm, one power iteration from the stored u0 at every evaluation, into the weights.

    v = normalize(u0 W), u = normalize(v W^T), sigma = v W^T u^T, weight = W / sigma; sv0 is a log of sigma and unused.
    Modifies the tensors of `state` in place, so that nothing is held twice. Raises UserError if u0 does not fit, or if
    there is more than one singular vector.
    """
    baked = {}
    for name, tensor in state.items():
        stem, _, last = name.rpartition(".")
        if last in ("u1", "sv1"):
            raise UserError(
                f"{where}: {stem!r} keeps several singular vectors (num_G_SVs > 1); one is supported"
            )
        if last in ("u0", "sv0") and f"{stem}.weight" in state:
            continue
        if last == "weight" and f"{stem}.u0" in state:
            matrix, u = tensor.flatten(1), state[f"{stem}.u0"]
            if u.shape != (1, len(matrix)):
                raise UserError(
                    f"{where}: {stem}.u0 has shape {list(u.shape)} for a weight of shape {list(tensor.shape)}"
                )
            v = F.normalize(u @ matrix, eps=eps)
            u = F.normalize(v @ matrix.T, eps=eps)
            baked[name] = tensor.div_((v @ matrix.T @ u.T).squeeze())
        else:
            baked[name] = tensor.clone()
    return baked


def load(request: Request) -> BigGAN:
    """Infer the sizes from the tensors, bake spectral norm, load strictly. bn_eps, sn_eps: the values used in training.

    statistics, of the norms: "stored" in the file, or "standing", collected here.
    """
    what, (path, _) = request.what, split_choice(request.target)
    bn_eps, sn_eps = request.number("bn_eps", 1e-5), request.number("sn_eps", 1e-6)
    statistics = request.choice("statistics", ("stored", "standing"), "stored")
    request.done()
    file = FileCard.of(path, request.sha256, what=what)
    state = bake_power_iteration(read_weights(request.target, what=what), eps=sn_eps, where=what)
    try:
        first_norm = state["blocks.0.0.bn1.gain.weight"]
        shared = state.get("shared.weight")
        if shared is None:
            # Each norm has a table [K, C] of its own: the transposed weight of a Linear on the label's vector.
            num_classes, width, chunk = len(first_norm), None, 0
            for name in state:
                if re.search(r"\.bn[12]\.(gain|bias)\.weight$", name):
                    state[name] = state[name].T.contiguous()
        else:
            num_classes, width = shared.shape
            chunk = first_norm.shape[1] - width
        count = 1 + max(int(m[1]) for k in state if (m := re.match(r"blocks\.(\d+)\.", k)))
        widths = []
        for index in range(count):
            outputs, inputs = state[f"blocks.{index}.0.conv1.weight"].shape[:2]
            widths.append((inputs, outputs, f"blocks.{index}.1.gamma" in state))
        first = state["linear.weight"].shape[1]
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"{what}: {str(path)!r} is not a BigGAN-PyTorch generator; looked for {error}"
        ) from error
    card = request.card(
        name=path.stem,
        architecture="biggan",
        num_classes=num_classes,
        latent_dim=chunk * (count + 1) if chunk else first,
        embedding_dim=width,
        image_size=4 * 2**count,
        condition="class-embedding" if width else "soft-vector",
        truncation="scales-latents",
        settings={"bn_eps": bn_eps, "sn_eps": sn_eps, "statistics": statistics},
        files={path.name: file},
    )
    with torch.device("meta"):
        generator = BigGAN(card, widths, chunk, bn_eps)
    load_state(generator, state, where=f"{what}: {str(path)!r}", assign=True)
    if statistics == "standing":
        collect_statistics(generator)
    elif not any(value.any() for name, value in state.items() if name.endswith("stored_mean")):
        raise UserError(
            f"{what}: {str(path)!r} holds no statistics of its norms (all means are 0): it was sampled with batch statistics, "
            "which make a sample depend on its batch. Add ?statistics=standing to collect them once"
        )
    return generator
