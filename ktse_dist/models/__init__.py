"""Backbones, the CAM head, and the weights that go into them."""
