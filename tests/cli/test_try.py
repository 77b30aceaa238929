"""Contract: one command from a config to a report, which goes on where it was stopped.

Oracles: the sites that the report names are those of the trained network; a second call trains nothing; the scores on
the page are those of the runs' own logs.
"""

import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from cli_helpers import CLASSIFIER, run

from repl_mm.analysis.html import as_html

# Slow enough for a small network not to be bound by its launches.
DEVICE = dict(fp32=0.05, tf32=0.05, bandwidth=20, launch_us=0.1)
BACKBONE = "type='repl_mm.ReplResNetCIFAR', depth=32, base_channels=16, stem_channels=16"
NETWORK = CLASSIFIER.replace("type='ResNet_CIFAR', depth=18, base_channels=8", BACKBONE)


class Page(HTMLParser):
    """The tags of a page, and what they refer to."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.sources = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for key, value in attrs if key in ('src', 'href')]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a space in its name, a config of a network without sites, and tools that run in this process."""
    root = tmp_path / 'my data'
    root.mkdir()
    (root / 'net.py').write_text(NETWORK)
    (root / 'device.json').write_text(json.dumps(DEVICE))

    def launch(tool: str, *args: str, log: Path | None = None) -> int:
        calls.append(tool)
        done = run(tool, *args)
        if log is not None:
            log.write_text(done.out + done.err)
        return done.code

    calls: list[str] = []
    monkeypatch.setattr('repl_mm.cli._try.launch', launch)
    monkeypatch.setattr('repl_mm.cli._try.conditions', lambda *_: 'As it is <b>assumed</b> here.')
    return root, calls


def attempt(root: Path, *args: object):
    arguments = '--predict', root / 'device.json', '--work-dir', root / 'out', '--save-time', '8%'
    return run('try', root / 'net.py', *arguments, *args)


def test_from_a_config_to_a_report(folder):
    root, calls = folder
    done = attempt(root, '--steps', '4')
    assert done.code == 0, done.err
    assert calls == ['seed_checkpoint', 'train', 'train', 'compare', 'deploy']
    out = root / 'out'

    # The line to paste is the network that was trained.
    markdown = (out / 'report.md').read_text()
    [line] = re.findall(r'^model = .*$', markdown, re.MULTILINE)
    sites = {tuple(site) for site in json.loads((out / 'plan.json').read_text())['repl']['sites']}
    weights = torch.load(out / 'RepL' / 'iter_4.pth', weights_only=False)['state_dict']
    replaced = {tuple(map(int, re.findall(r'layer(\d)\.(\d)', key)[0])) for key in weights if key.endswith('.alpha')}
    assert sites
    assert {(stage - 1, block) for stage, block in replaced} == sites
    assert str(sorted(sites)) in line
    scores = [json.loads(s.read_text().splitlines()[-1]) for s in sorted(out.glob('*/2*/vis_data/scalars.json'))]
    assert f'| Top-1 accuracy (%) | {scores[0]["accuracy/top1"]:.2f} | {scores[1]["accuracy/top1"]:.2f}' in markdown
    saved = json.loads((out / 'plan.json').read_text())['saved']
    assert saved['time'] >= 0.08
    assert f'{100 * saved["time"]:.1f} % of the time and {100 * saved["memory"]:.1f} % of the memory' in markdown
    assert f'Top-1 accuracy (%): {scores[1]["accuracy/top1"]:.2f}' in markdown
    # Both begin at the same weights: their first losses differ by what the sites change alone.
    assert (out / 'E2E.py').read_text().splitlines()[1] == (out / 'RepL.py').read_text().splitlines()[1]

    page = Page((out / 'report.html').read_text())
    assert page.tags.count('img') == 2
    assert page.tags.count('table') == 2
    assert {'script', 'link', 'a', 'b', 'iframe'}.isdisjoint(page.tags)
    assert all(source.startswith('data:image/png;base64,') for source in page.sources)

    # What is there already is not made again.
    calls.clear()
    assert attempt(root, '--steps', '4').code == 0
    assert calls == ['compare']
    done = attempt(root, '--steps', '6')
    assert (done.code, 'was begun with another config or other options' in done.err) == (2, True), done.err


def test_a_training_that_was_stopped_goes_on(folder):
    root, calls = folder
    assert attempt(root, '--steps', '4').code == 0
    cost = root / 'out' / 'RepL' / 'cost.json'
    record = json.loads(cost.read_text())
    cost.write_text(json.dumps(dict(record, complete=False)))
    calls.clear()
    assert attempt(root, '--steps', '4').code == 0
    assert calls == ['train', 'compare']


def test_of_a_trained_network(folder):
    root, calls = folder
    assert run('train', root / 'net.py', '--work-dir', root / 'trained').code == 0
    done = attempt(root, '--checkpoint', root / 'trained' / 'epoch_2.pth')
    assert done.code == 0, done.err
    assert calls == ['warm_start', 'deploy']
    markdown = (root / 'out' / 'report.md').read_text()
    for text in ('| the trained network |', '| fitted in activation space, statistics of norms |', '## Deployed'):
        assert text in markdown
    [command] = re.findall(r'^python tools/train.py .*$', markdown, re.MULTILINE)
    assert shlex.split(command)[-1] == f'load_from={root / "out" / "warm.pth"}'
    calls.clear()
    assert attempt(root, '--checkpoint', root / 'trained' / 'epoch_2.pth').code == 0
    assert calls == []


def test_where_nothing_is_saved_nothing_is_trained(folder):
    root, calls = folder
    (root / 'device.json').write_text(json.dumps(dict(DEVICE, launch_us=1e6)))  # an operator takes a second
    done = attempt(root)
    assert done.code == 0, done.err
    assert calls == []
    assert 'train it as it is' in (root / 'out' / 'report.md').read_text()


def test_a_tool_that_fails_ends_it_where_it_can_go_on(folder):
    root, calls = folder
    (root / 'net.py').write_text(NETWORK + "val_evaluator = dict(type='Unknown')\n")
    done = attempt(root, '--steps', '2')
    assert (done.code, 'train ended with code 2, see above' in done.err) == (2, True), done.err
    assert calls == ['seed_checkpoint', 'train']


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        (['--steps', '1'], '--steps is from 2 to'),
        (['--steps', '4', '--checkpoint', 'x.pth'], 'leave out --steps'),
        (['--checkpoint', 'missing.pth'], 'there is no checkpoint'),
        (['--predict', 'abacus'], "unknown device 'abacus'"),
        (['--work-dir', '{root}/net.py'], 'is a file: give a folder'),
    ],
)
def test_bad_arguments(options, said, folder):
    root, calls = folder
    done = attempt(root, *(option.format(root=root) for option in options))
    assert (done.code, said in done.err, calls) == (2, True, []), done.err


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ((BACKBONE, f"{BACKBONE}, repl=dict(policy='interval', every=4)"), 'already'),
        ((BACKBONE, "type='LeNet5'"), 'no sites in a'),
        (('batch_size=16', 'batch_size=1000, drop_last=True'), 'train_dataloader gives no batch'),
    ],
)
def test_bad_configs(change, said, folder):
    root, calls = folder
    (root / 'net.py').write_text(NETWORK.replace(*change))
    done = attempt(root)
    assert (done.code, said in done.err, calls) == (2, True, []), done.err


def test_a_page_holds_no_link_and_no_code_of_others(tmp_path):
    text = '# A\n\n<script>alert(1)</script> [x](https://example.org) <https://example.org> ![p](p.png)\n'
    (tmp_path / 'p.png').write_bytes(b'\x89PNG')
    page = as_html(text, title='<script>', folder=tmp_path)
    parsed = Page(page)
    assert {'script', 'a'}.isdisjoint(parsed.tags)
    assert parsed.sources == ['data:image/png;base64,iVBORw==']
