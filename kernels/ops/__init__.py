"""One folder an operation: reference, fast path, and the maths."""
