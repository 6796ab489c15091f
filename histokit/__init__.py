"""Spatial gene expression from H&E-stained tissue, and how good the prediction is."""

__version__ = "0.1.0"
_STAGES = ("read_slide", "extract_features", "predict")  # loaded where they are asked for


def __getattr__(name: str):
    if name not in _STAGES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from histokit import api

    return getattr(api, name)


def has_kernels() -> bool:
    """Whether the compiled CPU kernels are there; otherwise plain PyTorch serves every op."""
    from histokit.ops import dispatch

    return dispatch.HAS_KERNELS


def has_cuda() -> bool:
    """Whether the CUDA kernels were compiled in (nvcc was there at installation)."""
    from histokit.ops import dispatch

    return dispatch.HAS_CUDA
