"""One folder an op: its plain formula (reference.py), its fast path in torch (eager.py), its kernels (kernel.py) and
their launches (function.py), its maths and bounds (README.md)."""
