"""Scores: confusion counts, threshold sweep, tag mAP."""
