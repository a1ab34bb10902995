"""Ray: the only imports of it."""
