"""Image-level tags in, segmentation masks out: KTSE (ECCV 2024) at any scale."""

__version__ = "0.1.0"
