"""Dense CRF with the published parameter sets (docs/method.md 2 to 4). Needs pydensecrf2; free of torch."""

from dataclasses import dataclass
from types import ModuleType

import numpy as np

from ktse_dist.errors import UserError

MIN_PROBABILITY = 1e-5  # probabilities are clipped here before their logarithm


@dataclass(frozen=True)
class CRFConfig:
    """Mean-field iterations and the two pairwise terms: sigmas in pixels and in grey levels, weights."""

    iterations: int = 10
    gaussian_sxy: float = 3
    gaussian_weight: float = 3
    bilateral_sxy: float = 80
    bilateral_srgb: float = 13
    bilateral_weight: float = 10


CAM_CRF = CRFConfig()  # stage-1 CAMs
IR_LABEL_CRF = CRFConfig(bilateral_sxy=50, bilateral_srgb=5)  # hard labels for the refinement network
DEEPLAB_CRF = CRFConfig(gaussian_sxy=1, bilateral_sxy=67, bilateral_srgb=3, bilateral_weight=4)  # final segmentation


class PictureCRF:
    """The CRF of one picture, for several sets of K planes: its pairwise terms, 40 % of the time, are made once."""

    def __init__(self, rgb: np.ndarray, planes: int, config: CRFConfig = CAM_CRF):
        """rgb uint8 [H,W,3]; planes K >= 1."""
        assert rgb.ndim == 3 and rgb.shape[2] == 3 and rgb.dtype == np.uint8, (rgb.shape, rgb.dtype)
        self._shape, self._iterations = (planes, *rgb.shape[:2]), config.iterations
        self._field = _pydensecrf().DenseCRF2D(rgb.shape[1], rgb.shape[0], planes)
        self._field.addPairwiseGaussian(sxy=config.gaussian_sxy, compat=config.gaussian_weight)
        self._field.addPairwiseBilateral(
            sxy=config.bilateral_sxy,
            srgb=config.bilateral_srgb,
            rgbim=np.require(rgb, requirements="CW"),  # its C code takes no other
            compat=config.bilateral_weight,
        )

    def refine(self, probabilities: np.ndarray) -> np.ndarray:
        """Probabilities after mean-field inference, summing to 1: [K,H,W] in 0..1 -> float32 [K,H,W]."""
        return self.refine_energy(-np.log(np.clip(probabilities, MIN_PROBABILITY, 1)))

    def refine_energy(self, energy: np.ndarray) -> np.ndarray:
        """As `refine`, from negative log-probabilities [K,H,W]."""
        assert energy.shape == self._shape, (energy.shape, self._shape)
        self._field.setUnaryEnergy(np.ascontiguousarray(energy.reshape(len(energy), -1), dtype=np.float32))
        return np.array(self._field.inference(self._iterations), dtype=np.float32).reshape(self._shape)


def crf(rgb: np.ndarray, probabilities: np.ndarray, config: CRFConfig = CAM_CRF) -> np.ndarray:
    """Class probabilities after mean-field inference: rgb uint8 [H,W,3], probabilities [K,H,W] -> float32 [K,H,W].

    The K planes need not sum to 1 (background by `background_power` and CAMs do not); the result does.
    """
    return PictureCRF(rgb, len(probabilities), config).refine(probabilities)


def crf_labels(
    rgb: np.ndarray,
    labels: np.ndarray,
    classes: int,
    certainty: float = 0.7,
    config: CRFConfig = IR_LABEL_CRF,
) -> np.ndarray:
    """A hard labelling smoothed along the picture's edges: labels int [H,W] in 0..classes-1 -> int64 [H,W].

    Each given label starts with probability `certainty`, the others share the rest. One class alone stays as it is.
    """
    if classes == 1:
        return labels.astype(np.int64)
    others = -np.log((1 - certainty) / (classes - 1))
    energy = np.where(labels == np.arange(classes)[:, None, None], -np.log(certainty), others)
    return PictureCRF(rgb, classes, config).refine_energy(energy).argmax(0)


def background_power(cams: np.ndarray, alpha: float) -> np.ndarray:
    """Background (1 - max over classes)^alpha put before the CAMs: cams [n,H,W] in 0..1 -> float32 [1+n,H,W].

    alpha moves the outcome by 5 to 10 points of mIoU; the published values are 6, 10 and 24.
    """
    strongest = cams.max(0, keepdims=True, initial=0)
    return np.concatenate([(1 - strongest) ** alpha, cams]).astype(np.float32)


def _pydensecrf() -> ModuleType:
    try:
        from pydensecrf import densecrf
    except ImportError as missing:
        raise UserError(
            f"refinement by CRF needs the package pydensecrf2 ({missing}): "
            "pip install 'ktse_dist[crf]' (builds with g++), or choose a refinement without CRF"
        ) from missing
    return densecrf
