"""Options of the stages, each validated against its range when it is read."""

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
    """Frozen options: unknown keys are errors, values are checked against their ranges, and numbers must be finite.

    A table with only some of the keys changes just those of its field's default, which may differ from its class's defaults.
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
    """A table is merged over the default model that it changes; anything else is returned as given."""
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
    """The fields that differ from the no-op view, as a table for TOML."""
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
    """How batches are prefetched while training runs."""

    overlap: Overlap = Field(
        "auto",
        description="prefetch batches while training runs: auto does on GPUs, and not on CPUs, where both would share the cores",
    )
    depth: int = Field(3, ge=1, description="number of batches to prefetch")
    capture: bool = Field(False, description="replay synthesis as a CUDA graph (CUDA only)")


# A fraction 1/N.
Part = Annotated[str, Field(pattern=r"^1/[1-9][0-9]*$")]


class SynthesisOptions(Options):
    """Where pseudo images come from: the generator at every step, or a pool that is made once and reused with fresh views."""

    images: int | Part | Literal["fresh"] = Field(
        "1/4",
        description="size of PP's image pool: a number, or a fraction of the images that its steps show, such as 1/4 (a pool from a folder is used whole); fresh generates new images at every step",
    )
    images_per_target: int | Part | Literal["fresh"] = Field(
        "1/2",
        description="images in P-SSL's pool for each conditioning target image (labelled or not), or a fraction as above; a fraction of less than two images for each means fresh",
    )
    pool: str = Field(
        "memory",
        description="where pools are stored: memory (as run if they exceed memory_limit), run (in the run's folder), or a folder made by synthesize --format pool",
    )
    memory_limit: float = Field(
        4.0, ge=0, description="GiB of memory on the generator's device that pools may take"
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
                f"pool = {self.pool!r} has no effect while every image is fresh: set images or images_per_target to a number, or to a fraction such as 1/4"
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
        0.0, ge=0, description="gradients are clipped to this norm; 0 is off"
    )


class StageOptions(OptimizerOptions):
    """Options of every stage: a step budget, an optimizer, an exponential moving average (EMA)."""

    steps: int = Field(ge=1, description="optimizer steps")
    batch_size: int = Field(ge=2, description="images per step")
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="EMA of the weights, used to evaluate; 0 is off"
    )
    log_every: int = Field(20, ge=1, description="steps between lines of metrics.jsonl")
    checkpoint_every: int = Field(
        100, ge=0, description="steps between checkpoints; 0 saves only at the end of the stage"
    )


# A fraction of the side, and the fraction of the steps until which the views have that size.
Phase = tuple[Annotated[float, Field(gt=0, le=1)], float]
WHOLE_SIDE: tuple[Phase, ...] = ((1.0, 1.0),)
HALF_SIDE_FIRST: tuple[Phase, ...] = ((0.5, 0.6), (1.0, 1.0))


class PPOptions(StageOptions):
    """Stage 1, pseudo pre-training: cross-entropy on generated images of uniform source labels."""

    steps: int = Field(300, ge=1, description="optimizer steps")
    batch_size: int = Field(128, ge=2, description="generated images per step")
    lr: float = Field(0.1, gt=0, description="highest learning rate of the schedule")
    views: View = Field(default="weak", description="view of each generated image")  # type: ignore[assignment]
    resolution: Literal["auto"] | tuple[Phase, ...] = Field(
        "auto",
        description="size of the views over time: pairs of a fraction of the side and the fraction of the steps until which it is used; auto: [[0.5, 0.6], [1.0, 1.0]], which starts with images of half the side, if that is at least 8 pixels and the network accepts them, else full size throughout",
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
    """The target budget, shared by the supervised and the P-SSL stage so that comparisons are fair."""

    steps: int = Field(300, ge=1, description="optimizer steps")
    batch_size: int = Field(32, ge=2, description="labelled images per step")
    ema_decay: float = Field(
        0.99, ge=0, lt=1, description="EMA of the weights, used to evaluate; 0 is off"
    )
    views: View = Field(default="weak", description="view of each labelled target image")  # type: ignore[assignment]
    validate_every: int = Field(
        50, ge=0, description="steps between validations; 0 validates only at the end"
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
