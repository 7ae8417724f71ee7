"""Options of `ptgm-fast source`: the data, the deformation, the three networks and their budgets."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from ptgm_fast.training.options import Options


class DeformationOptions(Options):
    """Random, handwriting-like deformation of every training image; zeros leave the images as they are.

    Positions beyond the image repeat its border, so keep the deformation small unless the border is background.
    """

    rotation: float = Field(
        14.0, ge=0, le=180, description="largest rotation in either direction, in degrees"
    )
    scale: tuple[float, float] = Field((0.85, 1.2), description="minimum and maximum magnification")
    shear: float = Field(
        0.3, ge=0, le=2, description="largest horizontal shear (x per y) in either direction"
    )
    translation: float = Field(
        0.04, ge=0, le=0.5, description="largest shift along each axis, as a fraction of the side"
    )
    displacement: float = Field(
        0.035,
        ge=0,
        le=0.5,
        description="standard deviation of the smooth displacement, as a fraction of the side",
    )
    displacement_grid: int = Field(
        5,
        ge=2,
        le=32,
        description="control points of the displacement along a side (bicubic interpolation between them)",
    )
    thicken: float = Field(
        0.8,
        ge=0,
        le=1,
        description="largest blend with the 3x3 maximum, which makes bright strokes grow",
    )
    thicken_probability: float = Field(
        0.5, ge=0, le=1, description="fraction of the images that are thickened"
    )
    gain: float = Field(
        1.6,
        ge=1,
        le=10,
        description="brightness above the minimum is multiplied by up to this, then clipped",
    )

    @field_validator("scale")
    @classmethod
    def _ordered(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not 0 < scale[0] <= scale[1]:
            raise ValueError("must be [min, max] with 0 < min <= max")
        return scale


class ClassifierOptions(Options):
    """A classifier of the source classes, trained with AdamW and a learning rate that falls linearly to zero."""

    architecture: str = Field(
        "ptgm:cnn-small", description="a network by name, as in a training configuration"
    )
    steps: int = Field(1200, ge=1, description="optimizer steps")
    batch_size: int = Field(128, ge=2, description="images per step")
    lr: float = Field(3e-3, gt=0, description="learning rate of the first step")
    weight_decay: float = Field(0.02, ge=0)


class GeneratorOptions(Options):
    """The generator's sizes and training: a conditional VAE with the frozen classifier's cross-entropy on its samples."""

    widths: tuple[int, ...] = Field(
        (64, 48, 24),
        min_length=2,
        description="feature maps at each resolution, coarsest first; each further one doubles the side",
    )
    latent_dim: int = Field(16, ge=1)
    embedding_dim: int = Field(32, ge=1, description="size of a class embedding")
    encoder_width: int = Field(
        24, ge=1, description="feature maps of the VAE encoder's first convolution"
    )
    steps: int = Field(2400, ge=1, description="optimizer steps")
    batch_size: int = Field(
        64, ge=2, description="images reconstructed per step; as many prior samples are drawn"
    )
    lr: float = Field(
        2e-3, gt=0, description="learning rate of Adam at the first step; falls linearly to zero"
    )
    kl_weight: float = Field(1.0, ge=0, description="weight of KL(q(z | x, y) || N(0, I))")
    auxiliary_weight: float = Field(
        15.0,
        ge=0,
        description="weight of the frozen classifier's cross-entropy on samples of the prior",
    )
    auxiliary_ramp: float = Field(
        0.25, ge=0, le=1, description="fraction of the steps over which that weight rises from 0"
    )
    checkpoint_every: int = Field(
        200,
        ge=1,
        description="steps between checks that the loss is finite, each of which saves the weights",
    )

    @field_validator("widths")
    @classmethod
    def _positive(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        if min(widths) < 1:
            raise ValueError("every width must be at least 1")
        return widths


class SourceOptions(Options):
    """A source pair: generator and classifier of a labelled image set, judged by a third network."""

    name: str = Field("source", min_length=1, description="the pair's name, for its card")
    data: str = Field(
        description="the labelled images: a URI as for data.images of a run, for example folder:PATH"
    )
    description: str = Field(
        "", description="the data in words, for the card; empty repeats `data`"
    )
    licences: tuple[str, ...] = Field((), description="licences of the data, for the card")
    image_size: int = Field(28, ge=4, description="side in pixels")
    channels: Literal[1, 3] = 1
    holdout_per_class: int = Field(
        20, ge=1, description="images of each class held out from training to measure accuracy"
    )
    equivalent: Literal["none", "ignore-case"] | tuple[tuple[str, ...], ...] = Field(
        "none",
        description="classes that count as one in a second set of figures: ignore-case (names that differ in case only), or lists of names",
    )
    samples_per_class: int = Field(
        64, ge=2, description="generated and real images per class for the figures"
    )
    seed: int = Field(0, ge=0, lt=2**63)
    deformation: DeformationOptions = DeformationOptions()
    classifier: ClassifierOptions = ClassifierOptions()
    generator: GeneratorOptions = GeneratorOptions()
    judge: ClassifierOptions = Field(
        ClassifierOptions(architecture="ptgm:resnet-small", steps=800),
        description="trained separately (with its own seed) to judge whether samples match their label",
    )

    @model_validator(mode="after")
    def _fits(self) -> SourceOptions:
        factor = 2 ** (len(self.generator.widths) - 1)
        if self.image_size % factor:
            raise ValueError(
                f"image_size = {self.image_size} is not a multiple of {factor}, as generator.widths with "
                f"{len(self.generator.widths)} entries needs; change either"
            )
        if self.judge.architecture == self.classifier.architecture:
            raise ValueError(
                f"judge.architecture = {self.judge.architecture!r} is also the classifier's; the judge needs a different one"
            )
        return self
