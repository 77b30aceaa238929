"""What stands around a training run: its cost, its checkpoints, its ways to end, the sites that it chooses."""

from repl_mm.engine.hooks.activation_checkpointing import ActivationCheckpointingHook
from repl_mm.engine.hooks.adaptive import AdaptiveHook
from repl_mm.engine.hooks.checkpoint import CheckpointHook
from repl_mm.engine.hooks.cost import CostHook
from repl_mm.engine.hooks.finite_loss import FiniteLossHook
from repl_mm.engine.hooks.watchdog import WatchdogHook

__all__ = [
    'ActivationCheckpointingHook',
    'AdaptiveHook',
    'CheckpointHook',
    'CostHook',
    'FiniteLossHook',
    'WatchdogHook',
]
