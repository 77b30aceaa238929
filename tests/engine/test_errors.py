"""Errors of the host libraries become one line."""

import pytest

from repl_mm.engine.errors import explain


@pytest.mark.parametrize(
    'raises',
    [lambda: float(10**400), lambda: 1 // 0, lambda: [][1], lambda: int('x'), lambda: open('/nowhere/at all').close()],
    ids=['overflow', 'division', 'index', 'value', 'file'],
)
def test_what_bad_input_raises_names_the_task(raises):
    with pytest.raises(ValueError, match=r'^cannot read it: .') as caught, explain('cannot read it'):
        raises()
    assert '\n' not in str(caught.value)


def test_a_bug_is_left_as_it_is():
    with pytest.raises(AttributeError), explain('cannot read it'):
        None.missing  # noqa: B018
