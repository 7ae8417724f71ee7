"""StyleGAN2 and StyleGAN3 from their papers, sample by sample, with scipy's convolution and filter design."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.signal
import scipy.special

State = dict[str, np.ndarray]


def linear(state: State, name: str, x: np.ndarray, lr: float = 1.0) -> np.ndarray:
    weight = state[f"{name}.weight"] * (lr / np.sqrt(state[f"{name}.weight"].shape[1]))
    return weight @ x + state[f"{name}.bias"] * lr


def leaky(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.2 * x) * np.sqrt(2)


def mapped(
    state: State, z: np.ndarray, y: np.ndarray, num_layers: int, lr: float, psi: float
) -> np.ndarray:
    embedded = linear(state, "mapping.embed", y)
    x = np.concatenate([v / np.sqrt(np.mean(v**2) + 1e-8) for v in (z, embedded)])
    for i in range(num_layers):
        x = leaky(linear(state, f"mapping.fc{i}", x, lr))
    return state["mapping.w_avg"] + psi * (x - state["mapping.w_avg"])


def modulated(weight: np.ndarray, style: np.ndarray, demodulate: bool) -> np.ndarray:
    """Equations 1 and 3 of arXiv:1912.04958."""
    weight = weight * style[None, :, None, None]
    if demodulate:
        weight = weight / np.sqrt((weight**2).sum((1, 2, 3), keepdims=True) + 1e-8)
    return weight


def correlate(x: np.ndarray, weight: np.ndarray, mode: str) -> np.ndarray:
    return np.stack(
        [
            sum(scipy.signal.correlate2d(c, k, mode) for c, k in zip(x, row, strict=True))
            for row in weight
        ]
    )


def with_zeros(x: np.ndarray, factor: int) -> np.ndarray:
    out = np.zeros((len(x), x.shape[1] * factor, x.shape[2] * factor))
    out[:, ::factor, ::factor] = x
    return out


def upsampled(x: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """Insert zeros between pixels, then apply the filter, centered; its gain compensates for the zeros."""
    kernel = np.outer(taps, taps) / taps.sum() ** 2 * 4
    before, after = (len(taps) + 1) // 2, (len(taps) - 2) // 2
    padded = np.pad(with_zeros(x, 2), ((0, 0), (before, after), (before, after)))
    return np.stack([scipy.signal.convolve2d(c, kernel, "valid") for c in padded])


def stylegan2(state: State, config: dict[str, Any], z: np.ndarray, y: np.ndarray, psi: float, noise: bool) -> np.ndarray:  # fmt: skip
    options = config.get("synthesis_kwargs", {})
    architecture, clamp = options.get("architecture", "skip"), options.get("conv_clamp") or np.inf
    taps = np.array(options.get("resample_filter", [1, 3, 3, 1]), float)
    mapping = config.get("mapping_kwargs", {})
    w = mapped(state, z, y, mapping.get("num_layers", 8), mapping.get("lr_multiplier", 0.01), psi)

    def layer(name: str, x: np.ndarray, up: bool, gain: float) -> np.ndarray:
        weight = modulated(state[f"{name}.weight"], linear(state, f"{name}.affine", w), True)
        if up:
            # An upsampling layer's kernel is stored mirrored.
            kernel = np.outer(taps, taps) / taps.sum() ** 2 * 4
            before, after = 1 + (len(taps) + 1) // 2, 1 + (len(taps) - 2) // 2
            x = np.pad(with_zeros(x, 2), ((0, 0), (before, after), (before, after)))
            x = np.stack([scipy.signal.convolve2d(c, kernel, "valid") for c in x])
            x = correlate(x, weight[:, :, ::-1, ::-1], "valid")
        else:
            x = correlate(np.pad(x, ((0, 0), (1, 1), (1, 1))), weight, "valid")
        if noise:
            x = x + state[f"{name}.noise_const"] * state[f"{name}.noise_strength"]
        x = leaky(x + state[f"{name}.bias"][:, None, None]) * gain
        return np.clip(x, -clamp * gain, clamp * gain)

    x = image = None
    size = 4
    while size <= config["img_resolution"]:
        name = f"synthesis.b{size}"
        residual = architecture == "resnet" and x is not None
        gain = np.sqrt(0.5) if residual else 1.0
        before = x
        x = state[f"{name}.const"] if x is None else layer(f"{name}.conv0", x, True, 1.0)
        x = layer(f"{name}.conv1", x, False, gain)
        if residual:
            weight = state[f"{name}.skip.weight"]
            x = x + gain * upsampled(
                correlate(before, weight / np.sqrt(weight.shape[1]), "valid"), taps
            )
        if image is not None:
            image = upsampled(image, taps)
        if f"{name}.torgb.weight" in state:
            weight = state[f"{name}.torgb.weight"]
            style = linear(state, f"{name}.torgb.affine", w) / np.sqrt(weight.shape[1])
            made = correlate(x, modulated(weight, style, False), "valid")
            made = np.clip(made + state[f"{name}.torgb.bias"][:, None, None], -clamp, clamp)
            image = made if image is None else image + made
        size *= 2
    return np.clip(image, -1, 1)


def lowpass(
    num_taps: int, cutoff: float, width: float, rate: float, radial: bool
) -> np.ndarray | None:
    """Appendix C.1 of arXiv:2106.12423: Kaiser windows; with `radial` the jinc function."""
    if num_taps == 1:
        return None
    if not radial:
        return scipy.signal.firwin(num_taps, cutoff=cutoff, width=width, fs=rate)
    places = (np.arange(num_taps) - (num_taps - 1) / 2) / rate
    radius = np.hypot(*np.meshgrid(places, places))
    beta = scipy.signal.kaiser_beta(scipy.signal.kaiser_atten(num_taps, width / (rate / 2)))
    window = np.kaiser(num_taps, beta)
    kernel = (
        scipy.special.j1(2 * cutoff * np.pi * radius) / (np.pi * radius) * np.outer(window, window)
    )
    return kernel / kernel.sum()


class Geometry:
    """Section 4 of arXiv:2106.12423: cutoffs and stopbands grow geometrically; the last layers are critically sampled."""

    def __init__(self, config: dict[str, Any]) -> None:
        n, critical, side = config["num_layers"], config["num_critical"], config["img_resolution"]
        self.layers = []
        cut, stop, rate, size, channels = [], [], [], [], []
        for i in range(n + 1):
            t = min(i / (n - critical), 1)
            first_stop, last_stop = 2**2.1, side / 2 * 2**0.3
            cut.append(2 * (side / 2 / 2) ** t)
            stop.append(first_stop * (last_stop / first_stop) ** t)
            rate.append(int(2 ** np.ceil(np.log2(min(2 * stop[i], side)))))
            size.append(side if i >= n - 1 else rate[i] + 2 * config["margin_size"])
            channels.append(
                int(np.rint(min(config["channel_base"] / 2 / cut[i], config["channel_max"])))
            )
        channels[-1] = config["img_channels"]
        self.first = channels[0], size[0], rate[0], cut[0]
        half = [max(stop[i], rate[i] / 2) - cut[i] for i in range(n + 1)]
        for i in range(n + 1):
            p, last = max(i - 1, 0), i == n
            between = max(rate[p], rate[i]) * (1 if last else 2)
            up, down = between // rate[p], between // rate[i]
            up_taps, down_taps = (1 if last or f == 1 else 6 * f for f in (up, down))
            radial = config.get("use_radial_filters", False) and i < n - critical
            filters = (
                lowpass(up_taps, cut[p], 2 * half[p], between, False),
                lowpass(down_taps, cut[i], 2 * half[i], between, radial),
            )
            self.layers.append((f"L{i}_{size[i]}_{channels[i]}", channels[p], channels[i], size[p], size[i], up, down, filters, last))  # fmt: skip


def filtered(x: np.ndarray, taps: np.ndarray | None) -> np.ndarray:
    if taps is None:
        return x
    kernel = taps if taps.ndim == 2 else np.outer(taps, taps)
    return np.stack([scipy.signal.convolve2d(c, kernel, "valid") for c in x])


def stylegan3(
    state: State, config: dict[str, Any], z: np.ndarray, y: np.ndarray, psi: float
) -> np.ndarray:
    w = mapped(state, z, y, config.get("mapping_kwargs", {}).get("num_layers", 2), 0.01, psi)
    geometry = Geometry(config)
    channels, size, rate, cutoff = geometry.first
    t = linear(state, "synthesis.input.affine", w)
    cosine, sine, dx, dy = t / np.hypot(t[0], t[1])
    # Rotate the resulting image, then shift it: the inverse transform of its coordinates.
    turn = np.array([[cosine, -sine], [sine, cosine]])
    freqs = state["synthesis.input.freqs"] @ turn
    phases = state["synthesis.input.phases"] + freqs @ -np.array([dx, dy])
    fade = np.clip(1 - (np.hypot(*freqs.T) - cutoff) / (rate / 2 - cutoff), 0, 1)
    at = (np.arange(size) + 0.5 - size / 2) / rate
    waves = np.sin(2 * np.pi * (freqs[:, 0, None, None] * at[None, None, :] + freqs[:, 1, None, None] * at[None, :, None] + phases[:, None, None])) * fade[:, None, None]  # fmt: skip
    x = np.einsum("oc,chw->ohw", state["synthesis.input.weight"] / np.sqrt(channels), waves)
    for name, inputs, _, size_in, size_out, up, down, (
        up_filter,
        down_filter,
    ), last in geometry.layers:
        name = f"synthesis.{name}"
        weight, style = state[f"{name}.weight"], linear(state, f"{name}.affine", w)
        kernel = weight.shape[-1]
        if last:
            style = style / np.sqrt(inputs)
        x = correlate(
            x / np.sqrt(state[f"{name}.magnitude_ema"]), modulated(weight, style, not last), "full"
        )
        x = x + state[f"{name}.bias"][:, None, None]
        taps = [1 if f is None else len(f) for f in (up_filter, down_filter)]
        total = (size_out - 1) * down + 1 - (size_in + kernel - 1) * up + sum(taps) - 2
        low = (total + up) // 2
        high = total - low
        x = with_zeros(x, up)
        if low < 0:
            x, low = x[:, -low:, -low:], 0
        if high < 0:
            x, high = x[:, :high, :high], 0
        x = filtered(np.pad(x, ((0, 0), (low, high), (low, high))), up_filter) * up**2
        x = np.clip(x if last else leaky(x), -256, 256)
        x = filtered(x, down_filter)[:, ::down, ::down]
    return np.clip(x * 0.25, -1, 1)
