"""Networks by name: the project's own small ones, timm's, torchvision's, or a user's factory."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from ptgm_fast.errors import MissingExtraError, UserError
from ptgm_fast.models.hub import HUB, snapshot
from ptgm_fast.models.small import SMALL_NETWORKS

NETWORKS = {
    "ptgm:NAME": f"the project's own small networks: {', '.join(SMALL_NETWORKS)}",
    "timm:NAME": "a classifier of timm, with one linear head or two (docs/networks.md)",
    "timm:hf-hub:ORG/NAME": "the architecture that a model's timm config.json in the local Hugging Face cache names",
    "torchvision:NAME": "a classifier of torchvision.models, likewise",
    "package.module:factory": "a function of yours, called with num_classes, channels and image_size where it accepts them",
}

_NOT_OF_THE_SHAPE = {
    "model_name",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
    "features_only",
    "num_classes",
    "in_chans",
    "img_size",
}


def build(name: str, *, num_classes: int, channels: int, image_size: int) -> nn.Module:
    """A freshly initialized classifier: images [N, channels, image_size, image_size] -> logits [N, num_classes].

    name: see `NETWORKS`. The initialization draws from torch's global generator: seed it around the call.
    Raises UserError for an unknown name or a factory that fails; MissingExtraError names the extra to install.
    """
    scheme, _, rest = name.partition(":")
    if not rest:
        accepted = "\n".join(f"  {form:<24} {what}" for form, what in NETWORKS.items())
        raise UserError(f"unknown network {name!r}. Accepted:\n{accepted}")
    if scheme == "ptgm":
        return _own(rest)(num_classes=num_classes, channels=channels, image_size=image_size)
    if scheme == "timm":
        return _timm(rest, num_classes, channels, image_size)
    if scheme == "torchvision":
        return _torchvision(rest, num_classes, channels)
    return _factory(name, num_classes, channels, image_size)


def _own(name: str) -> Callable[..., nn.Module]:
    if name not in SMALL_NETWORKS:
        raise UserError(
            f"unknown network 'ptgm:{name}'{nearest(name, list(SMALL_NETWORKS))}; accepted: {', '.join(SMALL_NETWORKS)}"
        )
    return SMALL_NETWORKS[name]


def nearest(name: str, accepted: list[str]) -> str:
    """A "(did you mean ...?)" for the nearest accepted name, or nothing."""
    close = difflib.get_close_matches(name, accepted, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _timm(name: str, num_classes: int, channels: int, image_size: int) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError(f"the network timm:{name}", "timm", "timm") from error
    fixed: dict[str, Any] = {}
    if name.startswith(HUB):
        name, fixed = _hub_architecture(name.removeprefix(HUB))
    if not timm.is_model(name):
        raise UserError(f"timm has no model {name!r}{nearest(name, timm.list_models())}")
    arguments: dict[str, Any] = {
        **fixed,
        "pretrained": False,
        "num_classes": num_classes,
        "in_chans": channels,
    }
    # Only some families (transformers) take img_size; the others work at any size and reject the argument.
    for extra in ({"img_size": image_size}, {}):
        try:
            return timm.create_model(name, **arguments, **extra)
        except TypeError as error:
            failure = error
        except (ValueError, AssertionError, RuntimeError) as error:
            raise UserError(
                f"timm:{name} cannot be built for {image_size}x{image_size} images ({error})"
            ) from error
    raise UserError(f"timm:{name} cannot be built ({failure})")


def _hub_architecture(repository: str) -> tuple[str, dict[str, Any]]:
    """timm's name for a network in the local cache, and the arguments that its config sets."""
    what = f"the network timm:{HUB}{repository}"
    path = snapshot(repository, what=what) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        given = config.get("model_args") or {}
        # Drop whatever would load or download weights.
        shaping = {k: v for k, v in given.items() if k not in _NOT_OF_THE_SHAPE}
        return str(config["architecture"]), shaping
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"{what}: {str(path)!r} is not a timm config.json with an architecture ({error})"
        ) from error


def _torchvision(name: str, num_classes: int, channels: int) -> nn.Module:
    try:
        from torchvision import models
    except ImportError as error:
        raise MissingExtraError(
            f"the network torchvision:{name}", "torchvision", "torchvision"
        ) from error
    accepted = models.list_models(module=models)
    if name not in accepted:
        raise UserError(f"torchvision has no classifier {name!r}{nearest(name, accepted)}")
    with warnings.catch_warnings():
        # GoogLeNet and Inception announce a future change of their initialization.
        warnings.simplefilter("ignore", FutureWarning)
        module = models.get_model(name, weights=None, num_classes=num_classes)
    if channels != 3:
        _replace_first_convolution(module, channels)
    return module


def _replace_first_convolution(module: nn.Module, channels: int) -> None:
    """torchvision's networks have no option for the input channels: swap the stem's first convolution."""
    for path, child in module.named_modules():
        if isinstance(child, nn.Conv2d):
            fresh = nn.Conv2d(
                channels,
                child.out_channels,
                child.kernel_size,  # type: ignore[arg-type]
                child.stride,  # type: ignore[arg-type]
                child.padding,  # type: ignore[arg-type]
                bias=child.bias is not None,
            )
            module.set_submodule(path, fresh)
            return


def _factory(name: str, num_classes: int, channels: int, image_size: int) -> nn.Module:
    what = f"network {name!r}"
    factory = import_factory(name, what=what)
    offered = {"num_classes": num_classes, "channels": channels, "image_size": image_size}
    parameters = inspect.signature(factory).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if "num_classes" not in parameters and not takes_any:
        raise UserError(f"{what} must accept num_classes (and may accept channels and image_size)")
    network = factory(
        **{key: value for key, value in offered.items() if takes_any or key in parameters}
    )
    module = checked_module(network, what=what)
    if any(isinstance(parameter, UninitializedParameter) for parameter in module.parameters()):
        # Lazy layers take their sizes from a first forward.
        with torch.no_grad():
            module.eval()(torch.zeros(1, channels, image_size, image_size))
        module.train()
    return module


def import_factory(target: str, *, what: str) -> Callable[..., Any]:
    """Import the user's function or class `package.module:factory`. Raises UserError, with a message prefixed by `what`."""
    module_name, _, attribute = target.partition(":")
    # A console script does not have the working directory, where a user's own module is, on its path.
    sys.path.append(str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"{what}: module {module_name!r} cannot be imported ({error})") from error
    finally:
        sys.path.pop()
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise UserError(
            f"{what}: module {module_name!r} has no function or class {attribute!r}; write package.module:factory"
        )
    return factory


def checked_module(network: Any, *, what: str) -> nn.Module:
    """Return what a factory made if it is a module; otherwise raise UserError."""
    if isinstance(network, nn.Module):
        return network
    raise UserError(f"{what} returned a {type(network).__name__}, expected a torch.nn.Module")
