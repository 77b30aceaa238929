"""Computing layers: what stands where a block was removed. They need torch and no host library."""

from repl_mm.layers.adaptive import AdaptiveBlock, layer_at
from repl_mm.layers.base import ComputingLayer
from repl_mm.layers.blend import BlendedBlock
from repl_mm.layers.config import FORMS, ReplConfig
from repl_mm.layers.cost import Cost
from repl_mm.layers.drop import Drop
from repl_mm.layers.parts import ResidualParts, TransformerParts, read, reads
from repl_mm.layers.residual import ComputingBasicBlock, ComputingBottleneck
from repl_mm.layers.static import StaticLayer, fold, is_foldable
from repl_mm.layers.transformer import HeadwiseTransformerLayer, ScalarTransformerLayer

__all__ = [
    'FORMS',
    'AdaptiveBlock',
    'BlendedBlock',
    'ComputingBasicBlock',
    'ComputingBottleneck',
    'ComputingLayer',
    'Cost',
    'Drop',
    'HeadwiseTransformerLayer',
    'ReplConfig',
    'ResidualParts',
    'ScalarTransformerLayer',
    'StaticLayer',
    'TransformerParts',
    'fold',
    'is_foldable',
    'layer_at',
    'read',
    'reads',
]
