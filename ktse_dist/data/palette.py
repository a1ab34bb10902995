"""The colours of masks."""


def voc_palette(colours: int) -> list[list[int]]:
    """The colours of the PASCAL VOC masks: the bits of a value, dealt to the high bits of red, green and blue."""
    return [
        [sum((value >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8)) for channel in range(3)]
        for value in range(colours)
    ]
