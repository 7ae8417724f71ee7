"""The pictures of a run: what the target images asked the generator for, the curves, the comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ptgm_fast.runs.evidence import Pairs


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches, that `save` can write."""
    # The object interface: no pyplot, so no display, no global state, nothing to close.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a picture whole: `path` holds what it held, or all of it."""
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        figure.savefig(temporary)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def sample_sheet(pairs: Pairs, path: Path) -> None:
    """Each target image, its top soft labels, its pseudo samples: one row a target image."""
    rows, num_samples, _, height, width = pairs.pseudo.shape
    # One pair of axes in units of a tile: a hundred of them take two seconds to lay out.
    text, first = 2, 3
    figure = new_figure(0.8 * (num_samples + first), 0.8 * rows * height / width + 0.4)
    axis = figure.subplots()
    for tiles, left in (
        (pairs.targets[:, None].float() / 255, 0),
        ((pairs.pseudo + 1) / 2, first),
    ):
        gap = max(1, width // 12)
        columns = tiles.shape[1]
        padded = F.pad(tiles.clamp(0, 1), (0, gap, 0, gap), value=1.0)
        # [R, S, C, H, W] -> [R * H, S * W, C]
        grid = padded.permute(0, 3, 1, 4, 2).reshape(rows * (height + gap), -1, tiles.shape[2])
        pixels = grid.squeeze(-1).numpy()
        extent = (left, left + columns, rows, 0)
        axis.imshow(pixels, cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="nearest")
    for row in range(rows):
        name = pairs.class_names[row]
        axis.text(-0.1, row + 0.45, name, ha="right", va="center", fontsize=9)
        label = "\n".join(f"{k}  {share:.2f}" for k, share in pairs.soft_labels[row].items())
        axis.text(text, row + 0.45, label, ha="center", va="center", family="monospace", fontsize=8)
    for place, title in ((0.0, "target"), (1.5, "soft label"), (float(first), "pseudo samples")):
        axis.text(place, -0.15, title, va="bottom", fontsize=9)
    axis.set(xlim=(0, first + num_samples), ylim=(rows, 0), aspect=height / width)
    axis.axis("off")
    save(figure, path)


def curves(metrics: Sequence[Mapping[str, Any]], stages: Sequence[str], path: Path) -> None:
    """The loss terms of each stage and the validation accuracy, over steps."""
    figure = new_figure(4.6 * len(stages), 3.4)
    axes = figure.subplots(1, len(stages), squeeze=False)[0]
    for axis, stage in zip(axes, stages, strict=True):
        records = [r for r in metrics if r["stage"] == stage]
        for name in ("loss", "cross_entropy", "distillation", "unlabelled"):
            points = [(r["step"], r[name]) for r in records if name in r]
            if points and not (
                name == "cross_entropy"
                and not any("distillation" in r or "unlabelled" in r for r in records)
            ):
                axis.plot(*zip(*points, strict=True), label=name.replace("_", "-"), lw=1.4)
        axis.set_title(stage)
        axis.set_xlabel("step")
        axis.set_ylabel("loss")
        axis.set_ylim(bottom=0)
        validated = [
            (r["step"], r["validation_accuracy"]) for r in records if "validation_accuracy" in r
        ]
        if validated:
            twin = axis.twinx()
            twin.plot(
                *zip(*validated, strict=True),
                color="black",
                marker="o",
                ms=3,
                lw=1,
                label="validation accuracy",
            )
            twin.set_ylabel("validation accuracy")
            twin.set_ylim(top=1)
            twin.legend(loc="center right", fontsize=8, frameon=False)
        axis.legend(loc="upper right", fontsize=8, frameon=False)
    save(figure, path)


def comparison(methods: Mapping[str, Mapping[str, Any]], title: str, path: Path) -> None:
    """One bar a method: mean test accuracy in percent, standard deviation over seeds, a dot a seed."""
    names = list(methods)
    figure = new_figure(max(5.0, 1.15 * len(names)), 3.8)
    axis = figure.subplots()
    for position, name in enumerate(names):
        accuracies = [100 * a for a in methods[name]["test_accuracy"]]
        mean, std = 100 * methods[name]["mean"], 100 * methods[name]["std"]
        pseudo = methods[name]["images_synthesised"] > 0
        axis.bar(
            position,
            mean,
            yerr=std if len(accuracies) > 1 else None,
            width=0.62,
            capsize=4,
            color="#2a6f97" if pseudo else "#a9b4be",
            zorder=2,
        )
        axis.scatter([position] * len(accuracies), accuracies, s=11, color="black", zorder=3)
        axis.annotate(
            f"{mean:.1f}",
            (position, max(mean + std, *accuracies)),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    lowest = min(min(m["test_accuracy"]) for m in methods.values()) * 100
    highest = max(max(m["test_accuracy"]) for m in methods.values()) * 100
    margin = max(1.0, 0.25 * (highest - lowest))
    # Bars that start above zero show differences larger than they are: the axis says where it starts.
    bottom = max(0.0, lowest - 2 * margin)
    axis.set_ylim(bottom, min(101.0, highest + 1.5 * margin))
    axis.set_xticks(range(len(names)), names, rotation=20 if len(names) > 4 else 0, fontsize=9)
    axis.set_ylabel(f"test accuracy, % (axis starts at {bottom:.0f})")
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("blue: trained on pseudo images too", fontsize=9)
    axis.grid(axis="y", alpha=0.3, zorder=0)
    save(figure, path)
