"""Counts the faults that the suite tries, and prints them at its end."""

from collections import Counter
from pathlib import Path

import pytest

RECORD = Path('work_dirs/faults.md')


@pytest.fixture
def survived(record_property):
    """Call it with a kind of fault, once for each one that was tried and ended as it should."""
    return lambda kind, times=1: record_property('fault', (kind, times))


def pytest_terminal_summary(terminalreporter):
    counts = Counter()
    for report in terminalreporter.getreports('passed'):
        for name, value in report.user_properties:
            if name == 'fault':
                counts[value[0]] += value[1]
    failed = len(terminalreporter.getreports('failed')) + len(terminalreporter.getreports('error'))
    lines = ['| fault | survived |', '| --- | ---: |']
    lines += [f'| {kind} | {number} |' for kind, number in sorted(counts.items())]
    lines += [f'| all | {sum(counts.values())} |', f'| tests that failed | {failed} |']
    terminalreporter.write_line('')
    for line in lines:
        terminalreporter.write_line(line)
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text('\n'.join(lines) + '\n')
