"""The fused operations of the hot path, one folder each (installed as ``ptgm_fast.kernels``)."""

if __name__ == "kernels":
    # The repository root is on sys.path and shadows Hugging Face's package of that name.
    raise ImportError("this folder is installed as ptgm_fast.kernels; import it by that name")
