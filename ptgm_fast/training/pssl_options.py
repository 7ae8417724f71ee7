"""What the second stage can be told: the losses on pseudo samples, who predicts, which samples count."""

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
# Those of them that learn the prediction of classes.
PREDICTED = TWO_VIEWS - {"feature-mse"}
# What the papers of the others align: nothing.
ALIGNMENT: Mapping[str, Alignment] = {"softmatch": "uniform", "adamatch": "labelled"}
Weight = Annotated[float, Field(ge=0)]
_log = logging.getLogger("ptgm_fast")


class PSSLOptions(Options):
    """Stage 2, pseudo semi-supervised learning on samples conditioned on the target images (PCS)."""

    method: PSSLMethod | tuple[PSSLMethod, ...] = Field(
        "source-head", description="L_u, the loss on the pseudo samples; of a list the sum"
    )
    weight: Weight | tuple[Weight, ...] = Field(
        1.0,
        description="lambda, the weight of the loss on the pseudo samples; of a list of methods one for all, or one each",
    )
    ramp_steps: int = Field(0, ge=0, description="steps over which lambda rises from 0")
    batch_size: int = Field(32, ge=2, description="pseudo samples a step")
    real_share: float = Field(
        0.5, ge=0, lt=1, description="part of them that are images of data.unlabelled instead"
    )
    temperature: float = Field(0.4, gt=0, description="sharpening T of uda's weak prediction")
    threshold: float = Field(
        0.8,
        ge=0,
        le=1,
        description="least confidence of uda, fixmatch and pseudo-label, the highest such of flexmatch's; of adamatch as a part of that on labelled images",
    )
    pcs_temperature: float = Field(
        1.0, gt=0, description="tau of the soft source label softmax(C_s(x) / tau)"
    )
    pcs_top_k: int = Field(
        0, ge=0, description="keep the k most probable source classes; 0 keeps all"
    )
    source_label: Literal["condition", "classifier"] = Field(
        "classifier",
        description="what source-head learns of a pseudo sample: the soft label it was made for, or C_s's of its weak view",
    )
    source_temperature: float = Field(
        2.0,
        gt=0,
        description="T at which source-head learns it: T^2 KL(q^(1/T) / sum || softmax(head / T)); 1 is the soft label as it is",
    )
    batch_norm: Literal["concat", "split", "target-only"] = Field(
        "split",
        description="statistics of labelled and pseudo images: together, apart, or running ones for pseudo images",
    )
    teacher: Literal["self", "ema"] = Field(
        "self", description="who predicts the weak view; for mean-teacher always ema"
    )
    teacher_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="EMA of the weights that predicts the weak view; 0 takes the one that is evaluated",
    )
    alignment: Literal["paper", "none", "uniform", "labelled"] = Field(
        "paper",
        description="of the weak view's predictions, whose mean over the steps is drawn to equal shares of the classes (uniform) or to the mean prediction of labelled images; paper: softmatch uniform, adamatch labelled, the others none",
    )
    average_decay: float = Field(
        0.99,
        ge=0,
        lt=1,
        description="of the means over the steps by which alignment, flexmatch, freematch and softmatch go; papers, with 2^20 steps, have 0.999",
    )
    fairness_weight: float = Field(
        0.01, ge=0, description="of freematch's loss for equal shares of the classes, beside L_u"
    )
    filter: Literal["none", "confidence"] = Field(
        "none",
        description="which pseudo samples count; confidence: those that C_s finds to be what they were made for",
    )
    filter_threshold: float = Field(
        0.5,
        ge=0,
        le=1,
        description="least overlap, the sum of min(q, p), of the soft label that was asked for and of C_s's, for filter",
    )
    distillation: Distillation = "soft-target"
    weak_views: View = Field(default="weak")  # type: ignore[assignment]
    strong_views: View = Field(default="strong")  # type: ignore[assignment]

    @field_validator("method", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        """One name as it is, several as a tuple; the error of an unknown one lists the menu once."""
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, Sequence) or not names:
            raise ValueError(f"takes the name of a method, or a list of names, got {value!r}")
        names = ["mse" if name == "consistency" else name for name in names]
        if "consistency" in value:
            _log.warning('p_ssl.method "consistency" is called "mse" now; it is taken as that')
        for name in names:
            if name not in PSSL_METHODS:
                accepted = ", ".join(map(repr, PSSL_METHODS))
                raise ValueError(f"unknown method {name!r}; accepted: {accepted}")
        if len(set(names)) < len(names):
            raise ValueError(f"{names} names a method twice; weights tell how much each counts")
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
        """Of a step's batch, where there are unlabelled target images."""
        return round(self.real_share * self.batch_size)

    @property
    def two_views(self) -> bool:
        """Whether a teacher predicts the weak view for any of the methods."""
        return any(method in TWO_VIEWS for method in self.methods)

    def teacher_of(self, method: str) -> Literal["self", "ema"]:
        """Who predicts the weak view for a method of two views."""
        return "ema" if method == "mean-teacher" else self.teacher

    @property
    def teachers(self) -> list[str]:
        """All who predict the weak view, none without a method of two views."""
        return sorted({self.teacher_of(m) for m in self.methods if m in TWO_VIEWS})

    def alignment_of(self, method: str) -> Alignment:
        """Towards what a method's predictions of the weak view are aligned."""
        if method not in PREDICTED or self.alignment == "paper":
            return ALIGNMENT.get(method, "none")
        return self.alignment

    @property
    def keeps_means(self) -> bool:
        """Whether any method goes by means over the steps."""
        own = {"flexmatch", "freematch", "softmatch"}
        return any(self.alignment_of(m) != "none" or m in own for m in self.methods)

    def only(self, method: str) -> Self:
        """One method as its paper has it: no distillation beside it, labelled and pseudo images in one concatenated batch.

        Its lambda is the one given for it, else that of all methods, else 1.
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
        """What is wrong if a method needs an average of the weights and there is none; ema_decay: of the evaluated one."""
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
                "no mean over the steps is kept. Leave it out, or set alignment"
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
                f"fairness_weight = {self.fairness_weight:g} has no effect {named}: it is freematch's. Leave it out"
            )
        if (
            self.source_temperature != self.default("source_temperature")
            and "source-head" not in self.methods
        ):
            raise ValueError(
                f"source_temperature = {self.source_temperature:g} has no effect {named}: it is source-head's. Leave it out"
            )
        if "adamatch" in self.methods and self.batch_norm != "concat":
            raise ValueError(
                f'method = "adamatch" interpolates between the logits of two kinds of batch statistics, and batch_norm = "{self.batch_norm}" '
                'has but one of them: set batch_norm = "concat"'
            )
        return self

    @classmethod
    def default(cls, name: str) -> Any:
        return cls.model_fields[name].default
