"""Making packed data sets: from your own pictures, or the embedded stickers (docs of each module)."""
