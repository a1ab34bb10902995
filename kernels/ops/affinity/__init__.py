"""Pixel-adaptive refinement of masks."""
