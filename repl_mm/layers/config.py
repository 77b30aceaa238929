"""The ``repl`` option of a network, parsed once."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from typing_extensions import Self

from repl_mm.layers.base import ComputingLayer, Option
from repl_mm.layers.blend import BlendedBlock
from repl_mm.layers.drop import Drop
from repl_mm.layers.parts import Parts
from repl_mm.layers.residual import ComputingBasicBlock, ComputingBottleneck
from repl_mm.layers.transformer import HeadwiseTransformerLayer, ScalarTransformerLayer
from repl_mm.sites import POLICIES, policy_options

# All forms; the first that stands for a block is the default there.
FORMS: tuple[type[ComputingLayer], ...] = (
    ComputingBasicBlock,
    ComputingBottleneck,
    ScalarTransformerLayer,
    HeadwiseTransformerLayer,
    BlendedBlock,
    Drop,
)


def forms_for(kind: type[Parts]) -> list[str]:
    """Names of the forms for blocks that lend such parts, the default first."""
    return list(dict.fromkeys(layer.form for layer in FORMS if kind in layer.kinds))


def variants_of(form: str) -> tuple[Mapping[str, Any], ...]:
    """Sets of options of a form that the planner may try."""
    return next(layer.variants for layer in FORMS if layer.form == form)


def options_of(form: str) -> dict[str, Option]:
    """The options of a form, whichever block it stands for."""
    return {name: option for layer in FORMS if layer.form == form for name, option in layer.options_of_form.items()}


@dataclass(frozen=True)
class ReplConfig:
    """How to replace blocks.

    Attributes:
        policy: How sites are chosen; see :func:`repl_mm.sites.choose`.
        policy_options: The options of the policy.
        form: What is put there.
        options: The options of the form that are given.
    """

    policy: str
    policy_options: Mapping[str, Any]
    form: str
    options: Mapping[str, Any]

    @classmethod
    def parse(cls, repl: Any, *, forms: Iterable[str]) -> Self:
        """Read the option, with everything checked that needs no network.

        Args:
            repl: Such as ``dict(policy='interval', every=4)``.
            forms: What may be put there, the default first.

        Raises:
            ValueError: No such dict, an unknown policy, form or option, or a value that is not allowed.
        """
        forms = list(forms)
        if not isinstance(repl, Mapping) or not all(isinstance(key, str) for key in repl):
            raise ValueError(f"'repl' is a dict such as dict(policy='interval', every=4), or None, got {repl!r}")
        given = dict(repl)
        policy, form = given.pop('policy', None), given.pop('form', None)
        if not isinstance(policy, str) or policy not in POLICIES:
            raise ValueError(f'unknown policy {policy!r}: choose one of {", ".join(map(repr, POLICIES))}')
        form = forms[0] if form is None else form
        if form not in forms:
            raise ValueError(f'unknown form {form!r}: choose one of {", ".join(map(repr, forms))}')
        of_policy, of_form = policy_options(policy), options_of(form)
        if unknown := sorted(set(given) - set(of_policy) - set(of_form)):
            wrong, allowed = (', '.join(map(repr, names)) for names in (unknown, (*of_policy, *of_form)))
            raise ValueError(f'policy {policy!r} and form {form!r} have no option {wrong}: they take {allowed}')
        options = {name: value for name, value in given.items() if name in of_form}
        for name, value in options.items():
            if not of_form[name].check(value):
                raise ValueError(f'{name!r} is {of_form[name].allowed}, got {value!r}')
        if reason := next((why for layer in FORMS if layer.form == form and (why := layer.conflict(**options))), None):
            raise ValueError(reason)
        return cls(policy, {name: given[name] for name in of_policy if name in given}, form, options)

    def layer_for(self, parts: Parts) -> type[ComputingLayer]:
        """The computing layer of the form that stands for blocks of such parts.

        Raises:
            ValueError: The form stands for other blocks.
        """
        for layer in FORMS:
            if layer.form == self.form and layer.stands_for(parts):
                return layer
        allowed = ', '.join(map(repr, forms_for(type(parts))))
        raise ValueError(f'form {self.form!r} does not stand for blocks of this kind: choose one of {allowed}')


def coefficient_names() -> set[str]:
    """What the coefficients of all forms are called."""
    return {name for layer in FORMS for name in layer.coefficients}


def foreign_options(form: str) -> set[str]:
    """Options of other forms that this one does not have."""
    return {name for layer in FORMS for name in layer.options_of_form} - set(options_of(form))


def structural_options(form: str, repl: Mapping[str, Any]) -> dict[str, Any]:
    """Of a ``repl`` option, what changes the function of a form's layers, not only how they are trained."""
    return {name: repl[name] for name, option in options_of(form).items() if option.is_structural and name in repl}
