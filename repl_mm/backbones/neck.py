"""What stands between a plain Vision Transformer and a head for dense prediction."""

from collections.abc import Sequence

from mmseg.models.necks import Feature2Pyramid
from torch import Tensor

from repl_mm.registry import MODELS


@MODELS.register_module()
class SimpleFeaturePyramid(Feature2Pyramid):
    """Maps of several strides, all made from the last map of a plain backbone (ViTDet, Li et al. 2022, section 3).

    mmseg's class makes each map from one block's; here all of them have the most semantics.

    Args:
        embed_dim: Channels of the backbone.
        rescales: Size of each map relative to the backbone's: ``[4, 2, 1, 0.5]`` or ``[2, 1, 0.5, 0.25]``.
        norm_cfg: Norm within the upsampling by 4.
    """

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """(B, C, H, W), the last of ``inputs``, to one map (B, C, r H, r W) for each r of ``rescales``."""
        return super().forward([inputs[-1]] * len(self.rescales))
