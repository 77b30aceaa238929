"""What all registered backbones have in common: blocks of the host's class are replaced, and deployed."""

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

from mmengine.logging import print_log
from torch import Tensor, nn
from typing_extensions import Self

from repl_mm.deployment import Deployable
from repl_mm.layers import ReplConfig
from repl_mm.layers.adaptive import originals_in_place
from repl_mm.layers.config import forms_for
from repl_mm.layers.parts import Parts
from repl_mm.sites import Layout, Selection
from repl_mm.surgery import check_checkpoint, check_links, computing_layers, lay_out, replace_blocks

# At a momentum of 0.1 the initial mean and variance then weigh less than 3e-5.
NORM_WARMUP_BATCHES = 100


def _warm_up_norm(norm: nn.Module) -> None:
    """Put a norm that the host keeps in eval mode back into train mode while its statistics are not its own."""
    # Iteration-based loops come here at every step; reading a count from a GPU makes the CPU wait, so not for ever.
    if norm.training or getattr(norm, 'warmed_up', False):
        return
    batches = getattr(norm, 'num_batches_tracked', None)
    norm.warmed_up = batches is None or int(batches) >= NORM_WARMUP_BATCHES
    norm.train(not norm.warmed_up)


def _check_indices(value: Any) -> None:
    """A host takes whatever can be iterated, a dict's keys and a set's items among it."""
    given = value if isinstance(value, list | tuple) else [value]
    if not given or not all(isinstance(index, int) and not isinstance(index, bool) for index in given):
        raise ValueError(f"'out_indices' is the number of a stage or block, or a list of them, got {value!r}")


class ReplMixin(Deployable):
    """Replaces blocks of the host backbone that follows it among the bases of a class.

    Args:
        *args: Passed on to the host backbone.
        repl: How to replace, or None for the host backbone as it is. ``policy`` and its options choose the sites
            (see :func:`repl_mm.sites.choose`); ``form`` says what is put there: one of :meth:`forms`, the first by
            default; then the options of the form. ``form='drop'`` puts nothing there, which bounds every cost from
            below.
        deploy: Build, then call :meth:`switch_to_deploy`; ``dict(fuse_all=True)`` goes on to it. For the weights that
            ``tools/deploy.py`` writes.
        **kwargs: Passed on to the host backbone.

    Attributes:
        selection: The chosen sites and what was refused, or None.

    Raises:
        ValueError: A policy, an option, a site or a form that is not possible.
    """

    # What its blocks lend.
    kind: ClassVar[type[Parts]]
    # The option of stochastic depth, where there is one.
    depth_option: ClassVar[str | None] = None

    def __init__(
        self,
        *args: Any,
        repl: Mapping[str, Any] | None = None,
        deploy: bool | Mapping[str, bool] = False,
        **kwargs: Any,
    ) -> None:
        _check_indices(kwargs.get('out_indices', 0))
        super().__init__(*args, **kwargs)
        self.selection: Selection | None = None
        if repl is not None:
            self._replace(ReplConfig.parse(repl, forms=self.forms()))
            self._freeze()
        if deploy not in (False, True, dict(fuse_all=True), dict(fuse_all=False)):
            raise ValueError(f"'deploy' is True, False or dict(fuse_all=True), got {deploy!r}")
        if deploy:
            self.switch_to_deploy(**(deploy if isinstance(deploy, Mapping) else {}))

    @classmethod
    def forms(cls) -> list[str]:
        """What can be put in the place of its blocks, the default first."""
        return forms_for(cls.kind)

    def repl_stages(self) -> dict[str, nn.Module]:
        """The indexable modules that hold the blocks, by their name in the state dict."""
        raise NotImplementedError

    @property
    def title(self) -> str:
        """What messages call the backbone."""
        return f'{type(self).__name__} with {sum(map(len, self.repl_stages().values()))} blocks'

    def layout(self) -> Layout:
        """Block counts, and the positions that the default form refuses."""
        config = ReplConfig(policy='explicit', policy_options={}, form=self.forms()[0], options={})
        return lay_out(self.repl_stages(), config, name=self.title)

    def _freeze(self) -> None:
        """Freeze what ``frozen_stages`` names, computing layers among it."""
        raise NotImplementedError

    def _replace(self, config: ReplConfig) -> None:
        stages = self.repl_stages()
        zero_init = getattr(self, 'zero_init_residual', False)
        self.selection = replace_blocks(stages, config, name=self.title, zero_init_residual=zero_init)
        names = list(stages)
        for site, reason in self.selection.refusals:
            print_log(f'{names[site.stage]}.{site.index} is not replaced: {reason}', logger='current')
        if self.selection.note:
            print_log(self.selection.note, logger='current', level=logging.WARNING)

    def init_weights(self) -> None:
        """Initialise as the host does, then the computing layers, unless a checkpoint was loaded.

        The host reaches the computing layers only in part, and sets their norms as if they were in the stem.
        """
        with originals_in_place(self.repl_stages().values()):
            super().init_weights()
        init_cfgs = self.init_cfg if isinstance(self.init_cfg, list) else [self.init_cfg or {}]
        if not any(cfg.get('type') == 'Pretrained' for cfg in init_cfgs):
            for layer in computing_layers(self):
                layer.reset_parameters()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all modules, as the host does.

        A computing layer's batch norm stays in train mode for its first ``NORM_WARMUP_BATCHES`` even where the host
        keeps its norms in eval mode (``norm_eval``, ``frozen_stages``): a checkpoint of a plain network does not hold
        its statistics, and it would normalise by mean 0 and variance 1 for ever.

        Raises:
            ValueError: A computing layer lost its neighbours; see :func:`repl_mm.surgery.check_links`.
        """
        super().train(mode)
        if mode:
            self._freeze()
            check_links(self)
            for layer in computing_layers(self):
                for norm in layer.norms:
                    _warm_up_norm(norm)
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any) -> None:
        check_checkpoint(self.repl_stages(), state_dict, prefix=prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
