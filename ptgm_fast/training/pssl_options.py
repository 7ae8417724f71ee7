"""Options of the second stage: the losses on pseudo samples, their teacher, and which samples count."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from ptgm_fast.training.options import Distillation, Options, View

PSSLMethod = Literal[
    "uda",
    "fixmatch",
    "pseudo-label",
    "soft-pseudo-label",
    "mse",
    "feature-mse",
    "mean-teacher",
    "flexmatch",
    "freematch",
    "softmatch",
    "adamatch",
    "entropy",
    "source-head",
]
PSSL_METHODS = get_args(PSSLMethod)
Alignment = Literal["none", "uniform", "labelled"]
# Methods whose student sees a strong view while a teacher predicts the weak one.
TWO_VIEWS = frozenset(PSSL_METHODS) - {"pseudo-label", "entropy", "source-head"}
# Those of them whose student learns predicted classes.
PREDICTED = TWO_VIEWS - {"feature-mse"}
# The alignment in a method's own paper; the other papers have none.
ALIGNMENT: Mapping[str, Alignment] = {"softmatch": "uniform", "adamatch": "labelled"}
Weight = Annotated[float, Field(ge=0)]
_log = logging.getLogger("ptgm_fast")


class PSSLOptions(Options):
    """Stage 2, pseudo semi-supervised learning on samples conditioned on the target images (PCS)."""

    method: PSSLMethod | tuple[PSSLMethod, ...] = Field(
        "source-head", description="L_u, the loss on the pseudo samples; a list means their sum"
    )
    weight: Weight | tuple[Weight, ...] = Field(
        1.0,
        description="lambda, the weight of the loss on the pseudo samples; for a list of methods, one value for all or one for each",
    )
    ramp_steps: int = Field(0, ge=0, description="steps over which lambda rises from 0")
    batch_size: int = Field(32, ge=2, description="pseudo samples per step")
    real_share: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="fraction of these samples that are real images of data.unlabelled instead",
    )
    temperature: float = Field(0.4, gt=0, description="sharpening T of uda's weak prediction")
    threshold: float = Field(
        0.8,
        ge=0,
        le=1,
        description="minimum confidence for uda, fixmatch and pseudo-label; the highest class threshold of flexmatch; for adamatch, a factor on the mean confidence on labelled images",
    )
    pcs_temperature: float = Field(
        1.0, gt=0, description="tau of the soft source label softmax(C_s(x) / tau)"
    )
    pcs_top_k: int = Field(
        0, ge=0, description="keep the k most probable source classes; 0 keeps all"
    )
    source_label: Literal["condition", "classifier"] = Field(
        "classifier",
        description="soft label that source-head learns for a pseudo sample: the one it was conditioned on, or C_s's prediction of its weak view",
    )
    source_temperature: float = Field(
        2.0,
        gt=0,
        description="T at which source-head learns that label q: T^2 KL(q^(1/T) / sum || softmax(head / T)); 1 leaves the soft label as it is",
    )
    batch_norm: Literal["concat", "split", "target-only"] = Field(
        "split",
        description="batch statistics of labelled and pseudo images: computed together, separately, or the running statistics for pseudo images",
    )
    teacher: Literal["self", "ema"] = Field(
        "self",
        description="network that predicts the weak view: itself or its EMA; always ema for mean-teacher",
    )
    teacher_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of a separate EMA of the weights that predicts the weak view; 0 uses the EMA that is evaluated",
    )
    alignment: Literal["paper", "none", "uniform", "labelled"] = Field(
        "paper",
        description="distribution alignment of the weak view's predictions: their running mean is pulled towards equal class shares (uniform) or the mean prediction on labelled images (labelled); paper: uniform for softmatch, labelled for adamatch, none for the others",
    )
    average_decay: float = Field(
        0.99,
        ge=0,
        lt=1,
        description="decay of the running means that alignment, flexmatch, freematch and softmatch use; papers, with 2^20 steps, use 0.999",
    )
    fairness_weight: float = Field(
        0.01, ge=0, description="weight of the loss for equal class shares that freematch adds"
    )
    filter: Literal["none", "confidence"] = Field(
        "none",
        description="which pseudo samples count; confidence: those for which C_s confirms the label they were conditioned on",
    )
    filter_threshold: float = Field(
        0.5,
        ge=0,
        le=1,
        description="for filter: minimum overlap, sum of min(q, p), of the requested soft label q and C_s's prediction p",
    )
    distillation: Distillation = "soft-target"
    weak_views: View = Field(default="weak")  # type: ignore[assignment]
    strong_views: View = Field(default="strong")  # type: ignore[assignment]

    @field_validator("method", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        """One name as a string, several as a tuple. The error for an unknown name lists the accepted ones once."""
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, Sequence) or not names:
            raise ValueError(f"takes the name of a method, or a list of names, got {value!r}")
        names = ["mse" if name == "consistency" else name for name in names]
        if "consistency" in value:
            _log.warning('p_ssl.method "consistency" is now called "mse"; using "mse"')
        for name in names:
            if name not in PSSL_METHODS:
                accepted = ", ".join(map(repr, PSSL_METHODS))
                raise ValueError(f"unknown method {name!r}; accepted: {accepted}")
        if len(set(names)) < len(names):
            raise ValueError(f"{names} names a method twice; use weight to make one count more")
        return names[0] if len(names) == 1 else tuple(names)

    @property
    def methods(self) -> tuple[PSSLMethod, ...]:
        """The terms of L_u."""
        return self.method if isinstance(self.method, tuple) else (self.method,)

    @property
    def weights(self) -> dict[str, float]:
        """lambda of each method."""
        weight = self.weight
        each = weight if isinstance(weight, tuple) else (weight,) * len(self.methods)
        return dict(zip(self.methods, each, strict=True))

    @property
    def real_images(self) -> int:
        """The number of real images in a step's batch, if there are unlabelled target images."""
        return round(self.real_share * self.batch_size)

    @property
    def two_views(self) -> bool:
        """Whether any of the methods has a teacher that predicts the weak view."""
        return any(method in TWO_VIEWS for method in self.methods)

    def teacher_of(self, method: str) -> Literal["self", "ema"]:
        """The teacher of a two-view method, which predicts the weak view."""
        return "ema" if method == "mean-teacher" else self.teacher

    @property
    def teachers(self) -> list[str]:
        """All teachers; none without a two-view method."""
        return sorted({self.teacher_of(m) for m in self.methods if m in TWO_VIEWS})

    def alignment_of(self, method: str) -> Alignment:
        """What a method's predictions of the weak view are aligned to."""
        if method not in PREDICTED or self.alignment == "paper":
            return ALIGNMENT.get(method, "none")
        return self.alignment

    @property
    def keeps_means(self) -> bool:
        """Whether any method uses running means."""
        own = {"flexmatch", "freematch", "softmatch"}
        return any(self.alignment_of(m) != "none" or m in own for m in self.methods)

    def only(self, method: str) -> Self:
        """One method as in its paper: without distillation, labelled and pseudo images in one concatenated batch.

        Its lambda is the one given for it, else the one for all methods, else 1.
        """
        all_of_them = 1.0 if isinstance(self.weight, tuple) else self.weight
        return self.model_copy(
            update={
                "method": method,
                "weight": self.weights.get(method, all_of_them),
                "distillation": "none",
                "batch_norm": "concat",
                "alignment": "paper",
            }
        )

    @model_validator(mode="after")
    def _a_weight_for_each(self) -> Self:
        if isinstance(self.weight, tuple) and len(self.weight) != len(self.methods):
            raise ValueError(
                f"weight has {len(self.weight)} values for method = {list(self.methods)}: give one for each, or one for all"
            )
        return self

    def lacks_average(self, ema_decay: float) -> str:
        """The error if a method needs an average of the weights and there is none, else ""; ema_decay: of the evaluated one."""
        if "ema" not in self.teachers or self.teacher_decay or ema_decay:
            return ""
        setting = 'teacher = "ema"' if self.teacher == "ema" else 'method = "mean-teacher"'
        return f"p_ssl.{setting} needs training.ema_decay > 0 (for example 0.99), or p_ssl.teacher_decay"

    @model_validator(mode="after")
    def _settings_have_effect(self) -> Self:
        named = f"with method = {', '.join(self.methods)}"
        if self.teacher == "ema" and not self.two_views:
            raise ValueError(
                f'teacher = "ema" has no effect {named}: it predicts no weak view. Leave it out, or choose one of '
                f"{', '.join(sorted(TWO_VIEWS))}"
            )
        if self.teacher_decay and "ema" not in self.teachers:
            raise ValueError(
                f'teacher_decay = {self.teacher_decay:g} has no effect {named} and teacher = "self": no average '
                'predicts. Leave it out, or set teacher = "ema"'
            )
        if self.alignment in ("uniform", "labelled") and not PREDICTED.intersection(self.methods):
            raise ValueError(
                f'alignment = "{self.alignment}" has no effect {named}: there is no prediction of a weak view. Leave it '
                f"out, or choose one of {', '.join(sorted(PREDICTED))}"
            )
        if self.average_decay != self.default("average_decay") and not self.keeps_means:
            raise ValueError(
                f'average_decay = {self.average_decay:g} has no effect {named} and alignment = "{self.alignment}": '
                "no running mean is kept. Leave it out, or set alignment"
            )
        if self.filter_threshold != self.default("filter_threshold") and self.filter == "none":
            raise ValueError(
                f'filter_threshold = {self.filter_threshold:g} has no effect with filter = "none": set filter = '
                '"confidence", or leave it out'
            )
        if (
            self.fairness_weight != self.default("fairness_weight")
            and "freematch" not in self.methods
        ):
            raise ValueError(
                f"fairness_weight = {self.fairness_weight:g} has no effect {named}: only freematch uses it. Leave it out"
            )
        if (
            self.source_temperature != self.default("source_temperature")
            and "source-head" not in self.methods
        ):
            raise ValueError(
                f"source_temperature = {self.source_temperature:g} has no effect {named}: only source-head uses it. Leave it out"
            )
        if "adamatch" in self.methods and self.batch_norm != "concat":
            raise ValueError(
                f'method = "adamatch" interpolates between the logits of two kinds of batch statistics, and batch_norm = "{self.batch_norm}" '
                'has only one of them: set batch_norm = "concat"'
            )
        return self

    @classmethod
    def default(cls, name: str) -> Any:
        return cls.model_fields[name].default
