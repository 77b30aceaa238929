"""Contract: each check passes where the machine computes rightly, and fails where it does not.

Oracles: this CPU, and machines that are made to compute wrongly.
"""

import json
import subprocess
import sys

import pytest
import torch
from cli_helpers import run

from repl_mm.cli import _doctor, _doctor_tensors
from repl_mm.cli._doctor_tensors import NotRunError

CPU = torch.device('cpu')
QUICK = ('operators of detectors', 'computing layers', 'deployed networks', 'channels-last', 'times and memory')


def test_a_table_and_a_file(tmp_path, monkeypatch):
    """A check that fails, or cannot be made, does not keep the others from being made."""

    def unknown(device):
        raise NotRunError('there is no tape drive')

    def wrong(device):
        raise AssertionError('one and one is three')

    checks = {name: _doctor.CHECKS[name] for name in QUICK}
    monkeypatch.setattr(_doctor, 'CHECKS', dict(tape=unknown, **checks))
    done = run('doctor', '--device', 'cpu', '--out', tmp_path / 'found.json')
    assert done.code == 0, done.out
    found = json.loads((tmp_path / 'found.json').read_text())
    assert found['versions']['torch'] == torch.__version__.split('+')[0]
    assert {check['name']: check['result'] for check in found['checks']} == dict(
        {'tape': 'not run'}, **dict.fromkeys(QUICK, 'passed')
    )
    assert 'there is no tape drive' in done.out
    monkeypatch.setattr(_doctor, 'CHECKS', dict(sum=wrong, **{QUICK[0]: checks[QUICK[0]]}))
    done = run('doctor', '--device', 'cpu')
    assert done.code == 1
    assert 'one and one is three' in done.out
    assert 'passed' in done.out


def test_a_deployment_that_is_wrong_fails(monkeypatch):
    def slightly_wrong(network, **options):
        static = deploy(network, **options)
        with torch.no_grad():
            next(static.parameters()).mul_(1 + 1e-6)
        return static

    deploy = _doctor_tensors.deploy
    monkeypatch.setattr(_doctor_tensors, 'deploy', slightly_wrong)
    with pytest.raises(AssertionError, match='differs by'):
        _doctor.CHECKS['deployed networks'](CPU)


def test_layers_that_are_wrong_fail(monkeypatch):
    """A device that reads tensors of one precision, or all, a little differently."""

    def slightly_off(network, images):
        return passes(network, images * (1 + 1e-2 * (images.dtype == torch.float32)))

    passes = _doctor_tensors.passes
    monkeypatch.setattr(_doctor_tensors, 'passes', slightly_off)
    with pytest.raises(AssertionError, match=r'in torch\.float32 differs by'):
        _doctor.CHECKS['computing layers'](CPU)


def test_a_meter_that_is_wrong_fails(monkeypatch):
    monkeypatch.setattr(_doctor, 'HostMeter', type('Blind', (_doctor.HostMeter,), dict(sample=lambda self: None)))
    with pytest.raises(AssertionError, match='256 MiB were taken, the meter has seen 0 MiB'):
        _doctor.CHECKS['times and memory'](CPU)


def test_memory_that_was_freed_before_is_not_taken_for_new():
    """The C library keeps what is freed, as it does by itself behind a block that is still in use."""
    keep = """
import ctypes, torch
from repl_mm.cli import _doctor
libc = ctypes.CDLL(None)
assert libc.mallopt(-4, 0) and libc.mallopt(-1, 2**31 - 1)  # M_MMAP_MAX and M_TRIM_THRESHOLD
del (freed := [torch.ones(80 * _doctor.MIB)])[:]
print(_doctor.CHECKS['times and memory'](torch.device('cpu')))
"""
    done = subprocess.run([sys.executable, '-c', keep], capture_output=True, text=True)
    assert done.stdout.startswith('256 MiB taken, 25'), done.stderr


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--ranks', 0], '--ranks is from 1 to 64, got 0'),
        (['--out', 'found.txt'], '--out is a file that ends in .json, got found.txt'),
        (['--device', 'cuda'], 'torch sees no GPU here: take --device cpu'),
    ],
)
def test_bad_arguments(arguments, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    done = run('doctor', *arguments)
    assert done.code == 2
    assert message in done.err
