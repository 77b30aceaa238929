"""Contract: all that can be looked at on a machine without a GPU passes there, with two processes too.

Oracles: those of the checks.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_everything_passes_here(tmp_path):
    """In a process of its own, as memory is measured and code compiled that other tests have left traces in."""
    command = [sys.executable, ROOT / 'tools/doctor.py', '--device', 'cpu', '--ranks', '2', '--out', 'found.json']
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    found = {check['name']: check for check in json.loads((tmp_path / 'found.json').read_text())['checks']}
    assert done.returncode == 0, [check for check in found.values() if check['result'] != 'passed']
    assert {check['result'] for check in found.values()} == {'passed'}
    assert 'bit for bit' in found['a resumed run']['detail']
    assert 'Gloo' in found['2 processes']['detail']
