"""Computing layers: what stands where a block was removed."""

from repl_mm.layers.base import ComputingLayer
from repl_mm.layers.residual import ComputingBasicBlock, ComputingBottleneck
from repl_mm.layers.static import StaticLayer, fold, is_foldable
from repl_mm.layers.transformer import ComputingEncoderLayer, HeadwiseEncoderLayer, ScalarEncoderLayer

__all__ = [
    'ComputingBasicBlock',
    'ComputingBottleneck',
    'ComputingEncoderLayer',
    'ComputingLayer',
    'HeadwiseEncoderLayer',
    'ScalarEncoderLayer',
    'StaticLayer',
    'fold',
    'is_foldable',
]
