"""What the stages can be told: each option with its range, checked when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    field_validator,
    model_validator,
)

from ptgm_fast.engine.overlap import Overlap
from ptgm_fast.kernels.views import ViewSpec, view_preset

Distillation = Literal["none", "logit-matching", "soft-target"]


class Options(BaseModel):
    """Frozen; unknown keys are errors; values are checked against their ranges, numbers are finite.

    A table that gives some keys only changes those of its field's own default, which may differ from its class's.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _merge(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        defaults = {name: field.default for name, field in cls.model_fields.items()}
        return {name: _merged(defaults.get(name), value) for name, value in values.items()}


def _merged(default: Any, given: Any) -> Any:
    """A table over the default model that it changes; anything else as it is given."""
    if not (isinstance(default, BaseModel) and isinstance(given, Mapping)):
        return given
    kept = {name: getattr(default, name) for name in type(default).model_fields}
    return kept | {name: _merged(kept.get(name), value) for name, value in given.items()}


def _to_view_spec(value: Any) -> Any:
    """A preset's name or a table of `ViewSpec` fields."""
    if isinstance(value, str):
        return view_preset(value)
    if isinstance(value, dict):
        fields = set(ViewSpec.__dataclass_fields__)
        unknown = sorted(set(value) - fields)
        if unknown:
            raise ValueError(
                f"unknown view setting {unknown[0]!r}; accepted: {', '.join(sorted(fields))}"
            )
        arguments: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in value.items()
        }
        return ViewSpec(**arguments)
    return value


def _view_spec_to_table(spec: ViewSpec) -> dict[str, Any]:
    """Only what differs from the no-op view, as a table for TOML."""
    plain = ViewSpec()
    changed = {
        k: getattr(spec, k)
        for k in ViewSpec.__dataclass_fields__
        if getattr(spec, k) != getattr(plain, k)
    }
    return {k: list(v) if isinstance(v, tuple) else v for k, v in changed.items()}


View = Annotated[
    ViewSpec,
    BeforeValidator(_to_view_spec),
    PlainSerializer(_view_spec_to_table, return_type=dict[str, Any]),
]


class EngineOptions(Options):
    """How batches are made ahead of the training that reads them."""

    overlap: Overlap = Field(
        "auto",
        description="make batches ahead: auto does on GPUs, and not on CPUs, where both sides share the cores",
    )
    depth: int = Field(3, ge=1, description="batches ahead")
    capture: bool = Field(False, description="replay synthesis as a CUDA graph (CUDA only)")


# One of so many.
Part = Annotated[str, Field(pattern=r"^1/[1-9][0-9]*$")]


class SynthesisOptions(Options):
    """Where pseudo images come from: the generator at every step, or a pool, made once and served under fresh views."""

    images: int | Part | Literal["fresh"] = Field(
        "1/4",
        description="images of PP's pool: a number, or a part of those that its steps show, 1/4 (of a folder's pool: all); fresh makes new ones at every step",
    )
    images_per_target: int | Part | Literal["fresh"] = Field(
        "1/2",
        description="images of P-SSL's pool for each target image that asks (labelled or not), or as above; a part of less than two images for each is fresh",
    )
    pool: str = Field(
        "memory",
        description="memory (beyond the limit: as run), run (in the run's folder), or a folder made by synthesize --format pool",
    )
    memory_limit: float = Field(
        4.0, ge=0, description="GiB that pools may take of the memory of the generator's device"
    )

    @field_validator("images", "images_per_target")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 2:
            raise ValueError(f"must be at least 2, got {value}")
        return value

    @model_validator(mode="after")
    def _pool_has_effect(self) -> Self:
        if self.pool != "memory" and self.images == self.images_per_target == "fresh":
            raise ValueError(
                f"pool = {self.pool!r} has no effect while every image is fresh: set images or images_per_target to a number, or to a part such as 1/4"
            )
        return self


class OptimizerOptions(Options):
    """SGD with Nesterov momentum or AdamW, and the learning rate's schedule over the stage's steps."""

    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd uses Nesterov momentum")
    lr: float = Field(0.05, gt=0, description="highest learning rate of the schedule")
    momentum: float = Field(0.9, gt=0, lt=1, description="momentum of sgd, beta1 of adamw")
    weight_decay: float = Field(5e-4, ge=0)
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    gradient_clip: float = Field(
        0.0, ge=0, description="largest gradient norm; 0 leaves gradients alone"
    )


class StageOptions(OptimizerOptions):
    """What every stage has: a budget, an optimizer, an exponential moving average (EMA)."""

    steps: int = Field(ge=1, description="optimizer steps")
    batch_size: int = Field(ge=2, description="images a step")
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="EMA of the weights, used to evaluate; 0 is off"
    )
    log_every: int = Field(20, ge=1, description="steps between lines of metrics.jsonl")
    checkpoint_every: int = Field(
        100, ge=0, description="steps between checkpoints; 0 saves at the stage's end only"
    )


# A part of the side, and the share of the steps until which the views have it.
Phase = tuple[Annotated[float, Field(gt=0, le=1)], float]
WHOLE_SIDE: tuple[Phase, ...] = ((1.0, 1.0),)
HALF_SIDE_FIRST: tuple[Phase, ...] = ((0.5, 0.6), (1.0, 1.0))


class PPOptions(StageOptions):
    """Stage 1, pseudo pre-training: cross-entropy on generated images of uniform source labels."""

    steps: int = Field(300, ge=1, description="optimizer steps")
    batch_size: int = Field(128, ge=2, description="generated images a step")
    lr: float = Field(0.1, gt=0, description="highest learning rate of the schedule")
    views: View = Field(default="weak", description="view of each generated image")  # type: ignore[assignment]
    resolution: Literal["auto"] | tuple[Phase, ...] = Field(
        "auto",
        description="part of the side of the views, and until which share of the steps; auto: [[0.5, 0.6], [1.0, 1.0]], which begins on images of half the side, where that is at least 8 pixels and the network takes them, else the whole side throughout",
    )

    @field_validator("resolution")
    @classmethod
    def _in_order(cls, value: Any) -> Any:
        if value == "auto":
            return value
        ends = [end for _, end in value]
        if not (ends and ends == sorted(set(ends)) and ends[0] > 0 and ends[-1] == 1):
            raise ValueError(f"shares of the steps must rise to 1.0, got {ends}")
        return value


class TargetOptions(StageOptions):
    """The target budget: shared by the supervised and the P-SSL stage, so that methods compare fairly."""

    steps: int = Field(300, ge=1, description="optimizer steps")
    batch_size: int = Field(32, ge=2, description="labelled images a step")
    ema_decay: float = Field(
        0.99, ge=0, lt=1, description="EMA of the weights, used to evaluate; 0 is off"
    )
    views: View = Field(default="weak", description="view of each labelled target image")  # type: ignore[assignment]
    validate_every: int = Field(
        50, ge=0, description="steps between validations; 0 validates at the end only"
    )


class DistillationOptions(Options):
    """Distillation of the source classifier on the labelled target images, through a source head.

    logit-matching: mean squared error of the logits. soft-target: T^2 KL(softmax(C_s / T) || softmax(side / T))
    (Hinton et al. 2015, arXiv:1503.02531).
    """

    logit_matching_weight: float = Field(0.1, gt=0)
    soft_target_weight: float = Field(1.0, gt=0)
    temperature: float = Field(4.0, gt=0, description="T of soft-target")


class SupervisedOptions(Options):
    """Cross-entropy on the labelled target data, optionally with distillation."""

    distillation: Distillation = "none"
