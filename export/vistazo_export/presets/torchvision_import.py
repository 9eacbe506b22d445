"""torchvision's import, which may need help; its weights know how their images are prepared."""

from types import ModuleType
from typing import cast

import torch

# The schemas torchvision's import looks for, of the two compiled operators it needs in order to exist.
MISSING_SCHEMAS = (
    ("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"),
    ("torchvision::qnms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"),
)


def torchvision_models() -> ModuleType:
    """Return `torchvision.models`, also where torchvision's compiled operators cannot load.

    A torchvision built for CUDA fails to import beside a CPU build of torch, for want of two operators
    that no classifier uses. On that error alone their schemas are declared and the import repeated.
    """
    try:
        import torchvision.models  # noqa: PLC0415 - may have to be tried twice
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        for schema in MISSING_SCHEMAS:
            torch.library.define(*schema)
        import torchvision.models  # noqa: PLC0415
    return cast("ModuleType", torchvision.models)
