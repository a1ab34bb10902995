"""The loop, its engines, checkpoints and metrics; nothing here knows Ray."""
