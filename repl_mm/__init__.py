"""Replacement Learning for OpenMMLab: train with fewer blocks, deploy ordinary ones."""

__version__ = '0.1.0'
