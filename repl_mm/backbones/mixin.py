"""What all registered backbones have in common: blocks of the host's class are replaced, and deployed."""

import logging
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from repl_mm.backbones.stochastic_depth import apply_stochastic_depth, remove_stochastic_depth
from repl_mm.layers import ComputingBasicBlock, ComputingBottleneck, ComputingLayer
from repl_mm.sites import Layout, Selection, choose
from repl_mm.surgery import check_checkpoint, check_links, computing_layers, fold_norms, fuse_blocks, replace_blocks

# At a momentum of 0.1 the initial mean and variance then weigh less than 3e-5.
NORM_WARMUP_BATCHES = 100


def _warm_up_norm(norm: nn.Module | None) -> None:
    """Put a norm that the host keeps in eval mode back into train mode while its statistics are not its own."""
    # Iteration-based loops come here at every step; reading a count from a GPU makes the CPU wait, so not for ever.
    if norm is None or norm.training or getattr(norm, 'warmed_up', False):
        return
    batches = getattr(norm, 'num_batches_tracked', None)
    norm.warmed_up = batches is None or int(batches) >= NORM_WARMUP_BATCHES
    norm.train(not norm.warmed_up)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class ReplMixin:
    """Replaces blocks of the host backbone that follows it among the bases of a class.

    Args:
        *args: Passed on to the host backbone.
        repl: How to replace, or None for the host backbone as it is. ``policy`` and its options choose the sites
            (see :func:`repl_mm.sites.choose`); ``form`` says what is put there: one of ``forms``, the first
            being the default, or ``'drop'`` to put nothing there, which bounds every cost from below. With
            ``recompute=True`` the computing layers keep fewer activations and compute more; see
            :mod:`repl_mm.layers.memory`.
        deploy: Build, then call :meth:`switch_to_deploy`; ``dict(fuse_all=True)`` goes on to it. For the weights that
            ``tools/deploy.py`` writes.
        **kwargs: Passed on to the host backbone.

    Attributes:
        selection: The chosen sites and what was refused, or None.

    Raises:
        ValueError: A policy, an option, a site or a form that is not possible.
    """

    forms: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        *args: Any,
        repl: Mapping[str, Any] | None = None,
        deploy: bool | Mapping[str, bool] = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.selection: Selection | None = None
        if repl is not None:
            if not isinstance(repl, Mapping) or not all(isinstance(key, str) for key in repl):
                raise ValueError(f"'repl' is a dict such as dict(policy='interval', every=4), or None, got {repl!r}")
            self._replace(**repl)
            self._freeze()
        if deploy not in (False, True, dict(fuse_all=True), dict(fuse_all=False)):
            raise ValueError(f"'deploy' is True, False or dict(fuse_all=True), got {deploy!r}")
        if deploy:
            self.switch_to_deploy(**(deploy if isinstance(deploy, Mapping) else {}))

    def stages(self) -> dict[str, nn.Module]:
        """The indexable modules that hold the blocks, by their name in the state dict."""
        raise NotImplementedError

    def _blocks(self) -> list[nn.Module]:
        return [block for blocks in self.stages().values() for block in blocks]

    def layout(self) -> Layout:
        """What the choice of sites must know of this backbone."""
        raise NotImplementedError

    def _build(self, removed: nn.Module, *, prev: nn.Module, next: nn.Module) -> ComputingLayer:
        raise NotImplementedError

    def _freeze(self) -> None:
        """Freeze what ``frozen_stages`` names, computing layers among it."""
        raise NotImplementedError

    def _replace(
        self, *, policy: str | None = None, form: str | None = None, recompute: bool = False, **options: Any
    ) -> None:
        self.form = self.forms[0] if form is None else form
        if self.form not in (*self.forms, 'drop'):
            allowed = ', '.join(map(repr, (*self.forms, 'drop')))
            raise ValueError(f'unknown form {form!r} of {type(self).__name__}: choose one of {allowed}')
        if not isinstance(recompute, bool):
            raise ValueError(f"'recompute' is True or False, got {recompute!r}")
        self.recompute = recompute
        self.selection = choose(self.layout(), policy=policy, **options)
        names = list(self.stages())
        for site, reason in self.selection.refusals:
            print_log(f'{names[site.stage]}.{site.index} is not replaced: {reason}', logger='current')
        if self.selection.note:
            print_log(self.selection.note, logger='current', level=logging.WARNING)
        build = (lambda *_, **__: nn.Identity()) if self.form == 'drop' else self._build
        replace_blocks(self.stages(), self.selection.sites, build=build)

    @torch.no_grad()
    def switch_to_deploy(self, *, fuse_all: bool = False) -> None:
        """Make the backbone static, in place: computing layers become ordinary operators (Eq. 32-33).

        In eval mode it does what it did before. There is no way back: to keep the original, see
        :func:`repl_mm.deployment.deploy`. mmpretrain's and timm's re-parameterisation tools call this method.

        Args:
            fuse_all: Fold the batch norms of the retained blocks and of the stem into their convolutions too.

        Raises:
            ValueError: A computing layer lost its neighbours; see :func:`repl_mm.surgery.check_links`.
        """
        check_links(self.stages())
        remove_stochastic_depth(self._blocks())
        fuse_blocks(self.stages())
        if fuse_all:
            fold_norms(self)

    def init_weights(self) -> None:
        """Initialise as the host does, then the computing layers, unless a checkpoint was loaded.

        The host reaches the computing layers only in part, and sets their norms as if they were in the stem.
        """
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
            check_links(self.stages())
            for layer in computing_layers(self):
                _warm_up_norm(getattr(layer, 'norm', None))
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any) -> None:
        check_checkpoint(self.stages(), state_dict, prefix=prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


class ReplResNetMixin(ReplMixin):
    """Replaces blocks of a residual network.

    ``repl=dict(policy='interval', every=4)`` replaces every fourth block of each stage by a computing layer with one
    coefficient per channel and neighbour. With ``grad_fraction=0.25`` the coefficients' gradients are estimated from a
    quarter of each batch.

    Args:
        *args: Passed on, see :class:`ReplMixin`.
        stochastic_depth: Rate at which the last block is skipped in training; see
            :func:`repl_mm.layers.apply_stochastic_depth`.
        **kwargs: Passed on.
    """

    forms = ('channelwise',)

    def __init__(self, *args: Any, stochastic_depth: float = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not _is_number(stochastic_depth) or not 0 <= stochastic_depth < 1:
            raise ValueError(f"'stochastic_depth' is at least 0 and below 1, got {stochastic_depth!r}")
        if stochastic_depth and not kwargs.get('deploy'):
            apply_stochastic_depth(self._blocks(), stochastic_depth)

    def stages(self) -> dict[str, nn.Module]:
        return {name: getattr(self, name) for name in self.res_layers}

    def layout(self) -> Layout:
        first = 2 if self._is_bottleneck else 1
        return Layout(f'{type(self).__name__}-{self.depth}', tuple(self.stage_blocks), first=first)

    @property
    def _is_bottleneck(self) -> bool:
        return hasattr(self.layer1[0], 'conv3')

    def _replace(self, *, grad_fraction: float = 1, **options: Any) -> None:
        if not _is_number(grad_fraction) or not 0 < grad_fraction <= 1:
            raise ValueError(f"'grad_fraction' lies above 0 and is at most 1, got {grad_fraction!r}")
        self.grad_fraction = grad_fraction
        super()._replace(**options)

    def _build(self, removed: nn.Module, *, prev: nn.Module, next: nn.Module) -> ComputingLayer:
        layer = ComputingBottleneck if self._is_bottleneck else ComputingBasicBlock
        return layer(
            removed,
            prev=prev,
            next=next,
            norm_cfg=self.norm_cfg,
            zero_init_residual=self.zero_init_residual,
            recompute=self.recompute,
            grad_fraction=self.grad_fraction,
        )

    def _freeze(self) -> None:
        self._freeze_stages()
