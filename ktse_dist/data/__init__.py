"""Pictures: packed into shards, indexed, ordered, read, augmented, streamed."""
