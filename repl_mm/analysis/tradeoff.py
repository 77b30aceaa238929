"""What a replacement interval saves, by the papers' formulas and counted (P26 Eq. 52-57, 76; P24 Eq. 16-19)."""

from collections.abc import Sequence
from dataclasses import dataclass

from mmengine.config import Config

from repl_mm.analysis.cost import build_empty, count_cost
from repl_mm.backbones.configs import e2e_twin, with_repl
from repl_mm.layers import Cost


@dataclass(frozen=True)
class Saving:
    """One interval.

    Attributes:
        every: K.
        sites: How many blocks the policy replaces.
        blocks: N.
        eta: Operations of a computing layer over those of the block that it replaces, forward (Eq. 54).
        formula: C(K) / C_0 of Eq. 76 by that ratio, which takes N / K sites of equal size.
        forward: The same counted: operations of a forward pass.
        training: Of a forward and a backward pass.
        activations: Of what is saved for the backward pass.
        parameters: Of the parameters that are trained.
    """

    every: int
    sites: int
    blocks: int
    eta: float
    formula: float
    forward: float
    training: float
    activations: float
    parameters: float


def interval_cost(every: int, eta: float) -> float:
    """C(K) / C_0 = 1 - (1 - eta) / K (Eq. 76)."""
    return 1 - (1 - eta) / every


def count_saving(config: Config, counted: Cost, input_shape: Sequence[int], every: int) -> Saving:
    """Count a config with sites, whose interval is ``every``, beside its E2E network.

    Args:
        config: A config with sites.
        counted: What its E2E twin costs.
        input_shape: (C, H, W).
        every: K.
    """
    backbone = build_empty(config).backbone
    own, drop = (
        count_cost(c, input_shape)
        for c in (config, with_repl(config, **config.model.backbone.repl | dict(form='drop')))
    )
    removed = counted.forward - drop.forward
    eta = (own.forward - drop.forward) / removed if removed else 0.0
    blocks = sum(map(len, backbone.repl_stages().values()))
    return Saving(
        every,
        len(backbone.selection.sites),
        blocks,
        eta,
        interval_cost(every, eta),
        own.forward / counted.forward,
        (own.forward + own.backward) / (counted.forward + counted.backward),
        own.activations / counted.activations,
        own.trainable / counted.trainable,
    )


@dataclass(frozen=True)
class EarlyCounts:
    """What the 2024 paper's counts say of an interval, with k its name for it and L for the number of blocks.

    Attributes:
        sites: How many blocks this form replaces, which refuses some that others take.
        fewest: The least number of parameters that go, (L / k) P_min - 2 (Eq. 17).
        most: The largest, (L / k) P_max - 2 (Eq. 16).
        gone: How many go, counted.
        cost: Operations of a step over E2E's, (3 L - 2 (L - 1) / k) / (3 L).
        counted: The same, counted.
    """

    sites: int
    fewest: float
    most: float
    gone: int
    cost: float
    counted: float


def early_cost(blocks: int, every: int) -> float:
    """(3 L - 2 (L - 1) / k) O(F) over E2E's 3 L O(F)."""
    return (3 * blocks - 2 * (blocks - 1) / every) / (3 * blocks)


def count_early(config: Config, counted: Cost, input_shape: Sequence[int], every: int) -> EarlyCounts:
    """The same for the form of the 2024 paper, at the sites of a config.

    Args:
        config: A config with sites; their form is changed to ``blend``.
        counted: What its E2E twin costs.
        input_shape: (C, H, W).
        every: K.
    """
    blend = with_repl(config, **config.model.backbone.repl | dict(form='blend'))
    own = count_cost(blend, input_shape)
    stages = build_empty(e2e_twin(config)).backbone.repl_stages().values()
    sizes = [sum(p.numel() for p in block.parameters()) for stage in stages for block in stage]
    share = len(sizes) / every
    return EarlyCounts(
        len(build_empty(blend).backbone.selection.sites),
        share * min(sizes) - 2,
        share * max(sizes) - 2,
        counted.trainable - own.trainable,
        early_cost(len(sizes), every),
        (own.forward + own.backward) / (counted.forward + counted.backward),
    )
