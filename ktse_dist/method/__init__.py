"""KTSE: docs/method.md 1.2 to 1.6 as one module."""
