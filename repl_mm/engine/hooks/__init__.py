"""What stands around a training run: its cost, its checkpoints, its ways to end."""

from repl_mm.engine.hooks.checkpoint import CheckpointHook
from repl_mm.engine.hooks.cost import CostHook
from repl_mm.engine.hooks.finite_loss import FiniteLossHook
from repl_mm.engine.hooks.watchdog import WatchdogHook

__all__ = ['CheckpointHook', 'CostHook', 'FiniteLossHook', 'WatchdogHook']
