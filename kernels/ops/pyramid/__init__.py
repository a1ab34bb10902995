"""Global pyramid head: class scores from a CAM and its gated pooling pyramid."""
