"""Segmentation loss of the CAM network on its own pseudo-labels."""
