"""The consistency losses between a weak and a strong view."""

from __future__ import annotations

from torch import Tensor

from .. import dispatch

METHODS = ("uda", "fixmatch", "soft-pseudo-label", "consistency")


def consistency(
    weak_logits: Tensor,
    strong_logits: Tensor,
    *,
    method: str = "uda",
    temperature: float = 0.4,
    threshold: float = 0.8,
    class_thresholds: Tensor | None = None,
    sample_weight: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """The consistency loss of each sample, float32 [N], for w the weak and s the strong logits.

    With p_w = softmax(w), p_s = softmax(s), m = [max p_w >= threshold] and v the sample's weight (1 without):

    ``uda``: v m KL(softmax(w / T) || p_s) (Xie et al. 2020, arXiv:1904.12848, section 3.3);
    ``fixmatch``: v m CE(p_s, argmax p_w) (Sohn et al. 2020, arXiv:2001.07685, eq. 4);
    ``soft-pseudo-label``: v m KL(softmax(w / T) || p_s);
    ``consistency``: v m mean over classes of (p_w - p_s)^2 (Laine and Aila 2017, arXiv:1610.02242).

    weak_logits, strong_logits [N, C], floating, of one shape; T = temperature (``uda`` and ``soft-pseudo-label``);
    class_thresholds [C] replaces the threshold by that of the class argmax p_w (FlexMatch, FreeMatch);
    sample_weight [N]. The gradient flows to the strong logits only. Raises ValueError for an unknown method,
    temperature <= 0, a threshold outside [0, 1], or shapes that do not fit.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; accepted: {', '.join(METHODS)}")
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1], got {threshold}")
    if (
        weak_logits.ndim != 2
        or weak_logits.shape != strong_logits.shape
        or weak_logits.shape[1] < 1
    ):
        shapes = f"{list(weak_logits.shape)} and {list(strong_logits.shape)}"
        raise ValueError(f"weak and strong logits must both be [N, C], got {shapes}")
    num, num_classes = weak_logits.shape
    for name, tensor, length in (
        ("class_thresholds", class_thresholds, num_classes),
        ("sample_weight", sample_weight, num),
    ):
        if tensor is not None and tensor.shape != (length,):
            raise ValueError(f"{name} must be [{length}], got {list(tensor.shape)}")
    module = dispatch.implementation(
        "consistency", dispatch.select("consistency", strong_logits.device, impl)
    )
    return module.consistency(
        weak_logits, strong_logits, method, temperature, threshold, class_thresholds, sample_weight
    )
