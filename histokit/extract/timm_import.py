"""timm beside any build of torchvision."""

from __future__ import annotations

import torch


def import_timm():
    """Import timm whatever torchvision build is there.

    torchvision's CUDA wheel cannot load its operators beside CPU torch, and then fails to import
    because two of their schemas are missing. No encoder calls them, so declaring them is enough.
    """
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        name = schema.partition("(")[0]
        try:
            torch._C._dispatch_find_schema_or_throw(f"torchvision::{name}", "")
        except RuntimeError:
            _DECLARED.append(torch.library.Library("torchvision", "FRAGMENT"))
            _DECLARED[-1].define(schema)
    import timm

    return timm


_DECLARED: list[torch.library.Library] = []  # a schema lives as long as its Library object
