"""Spatial gene expression from H&E-stained tissue, and how good the prediction is."""

__version__ = "0.1.0"
