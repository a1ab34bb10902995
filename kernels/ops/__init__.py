"""One folder an op: its plain formula (reference.py), its fast path (function.py), its maths and bounds (README.md)."""
