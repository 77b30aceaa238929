"""Sites that are chosen anew at every epoch."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.nn.parallel import DistributedDataParallel

from repl_mm.adaptation import adapt, adaptive_blocks, reset_scores, share_scores
from repl_mm.registry import HOOKS

# Where a checkpoint says for which epoch its sites were chosen.
_CHOSEN = 'sites_of_epoch'


@HOOKS.register_module()
class AdaptiveHook(Hook):
    """Lets a network with ``policy='adaptive'`` replace its most redundant blocks (Section IV-D1h, Eq. 34).

    Blocks are scored over an epoch, and the sites change when the next one begins: validation and checkpoints see the
    network as it was trained. ``tools/train.py`` adds the hook to configs with that policy.

    Raises:
        ValueError: Training that counts no epochs, or on several processes without ``find_unused_parameters``.
    """

    def before_train(self, runner: Runner) -> None:
        """Make sure that the run is one in which sites can change."""
        if not adaptive_blocks(runner.model):
            return
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise ValueError(
                "policy 'adaptive' chooses sites at every epoch, and this run counts none: "
                'give train_cfg by_epoch=True and max_epochs'
            )
        if isinstance(runner.model, DistributedDataParallel) and not runner.model.find_unused_parameters:
            raise ValueError(
                "policy 'adaptive' leaves blocks out of a step: on several processes the config needs "
                'find_unused_parameters=True'
            )

    def before_train_epoch(self, runner: Runner) -> None:
        """Choose the sites of an epoch, unless the run was resumed within it."""
        hub = runner.message_hub
        if not adaptive_blocks(runner.model) or hub.get_info(_CHOSEN) == runner.epoch:
            return
        if runner.epoch == 0:
            reset_scores(runner.model)
        else:
            sites = ', '.join(name.removeprefix('module.') for name in adapt(runner.model))
            runner.logger.info(f'Replaced in epoch {runner.epoch + 1}: {sites}')
        hub.update_info(_CHOSEN, runner.epoch)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Keep the scores of all processes in the network, for whoever writes a checkpoint now."""
        share_scores(runner.model)
