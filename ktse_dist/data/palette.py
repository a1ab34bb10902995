"""What the values of masks mean, and their colours: 0 background, class + 1, IGNORE."""

IGNORE = 255  # pixels of which nothing is known; no score counts them


def voc_palette(colours: int) -> list[list[int]]:
    """The colours of the PASCAL VOC masks: the bits of a value, dealt to the high bits of red, green and blue."""
    return [
        [sum((value >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8)) for channel in range(3)]
        for value in range(colours)
    ]
