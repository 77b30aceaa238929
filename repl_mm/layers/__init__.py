"""Computing layers: what stands where a block was removed."""

from repl_mm.layers.base import ComputingLayer
from repl_mm.layers.encoder import ComputingEncoderLayer, HeadwiseEncoderLayer, ScalarEncoderLayer
from repl_mm.layers.residual import ComputingBasicBlock, ComputingBottleneck
from repl_mm.layers.static import StaticLayer, fold, is_foldable
from repl_mm.layers.stochastic_depth import keep_all, skip_at_random, skip_none

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
    'keep_all',
    'skip_at_random',
    'skip_none',
]
