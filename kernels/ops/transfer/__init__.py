"""Losses on the gap between two CAMs beyond a margin: mixed pictures (transfer) and erased ones (alignment)."""
