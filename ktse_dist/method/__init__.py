"""KTSE: METHOD.md sections 1.2 to 1.6 (docs/method.md) as one module."""
