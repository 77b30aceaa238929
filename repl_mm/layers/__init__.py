"""Computing layers: what stands where a block was removed."""

from repl_mm.layers.base import ComputingLayer
from repl_mm.layers.encoder import ComputingEncoderLayer, HeadwiseEncoderLayer, ScalarEncoderLayer
from repl_mm.layers.residual import ComputingBasicBlock, ComputingBottleneck

__all__ = [
    'ComputingBasicBlock',
    'ComputingBottleneck',
    'ComputingEncoderLayer',
    'ComputingLayer',
    'HeadwiseEncoderLayer',
    'ScalarEncoderLayer',
]
