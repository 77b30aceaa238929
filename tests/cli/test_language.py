"""Contract: the tools train, resume, test, deploy and compare a language model as they do networks for images.

Oracles: the uninterrupted run, bit for bit; the score of the network before it was deployed.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from cli_helpers import run
from helpers import same
from mmengine.config import Config

CONFIGS = Path(__file__).parents[2] / 'configs'
RECIPE = CONFIGS / 'language' / 'transformer-lm-12l-repl_1xb64-20e_wikitext2.py'
CONFIG = """
_base_ = {demo!r}
num_tokens = 40
data = dict(type='WikiText2', data_root={root!r}, num_tokens=40, bptt=8)
model = dict(backbone=dict(num_tokens=40, embed_dims=16, depth=5, feedforward_channels=24, context=8))
train_dataloader = dict(batch_size=4, dataset=dict(_delete_=True, split='train', columns=4, **data))
val_dataloader = dict(dataset=dict(_delete_=True, split='valid', **data))
test_dataloader = dict(dataset=dict(_delete_=True, split='test', **data))
train_cfg = dict(max_epochs=2)
epochs = 2
param_scheduler = dict(total_steps=2)
default_hooks = dict(logger=dict(interval=2), checkpoint=dict(max_keep_ckpts=5))
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A corpus, a config with sites and its E2E twin."""
    folder = tmp_path_factory.mktemp('language')
    numbers = torch.randint(30, (600,), generator=torch.Generator().manual_seed(0)).tolist()
    for at, split in enumerate(('train', 'valid', 'test')):
        words = numbers if split == 'train' else numbers[50 * at : 50 * at + 60]
        (folder / f'wiki.{split}.tokens').write_text(' '.join(f'w{n}' for n in words))
    for name, demo in (('lm-repl', 'transformer-lm-repl_topics'), ('lm', 'transformer-lm_topics')):
        demo = str(CONFIGS / 'demo' / f'{demo}.py')
        (folder / f'{name}.py').write_text(CONFIG.format(demo=demo, root=str(folder)))
    return folder


@pytest.fixture(scope='module')
def trained(folder):
    """A finished run with sites."""
    done = run('train', folder / 'lm-repl.py', '--work-dir', folder / 'repl')
    assert done.code == 0, done.err
    assert 'Failed to search registry' not in done.out + done.err  # of mmengine, about a scope that lacks one
    return folder / 'repl'


@pytest.fixture(scope='module')
def trained_e2e(folder):
    """The same of its twin."""
    done = run('train', folder / 'lm.py', '--work-dir', folder / 'e2e')
    assert done.code == 0, done.err
    return folder / 'e2e'


def score_of(config: Path, checkpoint: Path, work_dir: Path) -> float:
    """The perplexity of tools/test.py, which it writes into its work directory."""
    done = run('test', config, checkpoint, '--work-dir', work_dir)
    assert done.code == 0, done.err
    [log] = work_dir.glob('*/*.json')
    return json.loads(log.read_text())['perplexity']


def test_a_run_that_goes_on_is_the_run_that_was_not_interrupted(folder, trained):
    work_dir = folder / 'resumed'
    work_dir.mkdir()
    shutil.copy(trained / 'epoch_1.pth', work_dir)
    done = run('train', folder / 'lm-repl.py', '--work-dir', work_dir, '--resume', work_dir / 'epoch_1.pth')
    assert done.code == 0, done.err
    ours, theirs = (torch.load(path / 'epoch_2.pth', weights_only=False)['state_dict'] for path in (work_dir, trained))
    assert same(ours, theirs)
    first = torch.load(trained / 'epoch_1.pth', weights_only=False)['state_dict']
    assert not same(first, theirs)


def test_deployed_it_scores_the_same(folder, trained):
    config, checkpoint, out = folder / 'lm-repl.py', trained / 'epoch_2.pth', folder / 'deployed'
    before = score_of(config, checkpoint, folder / 'test trained')
    done = run('deploy', config, checkpoint, out, '--format', 'onnx', 'torch')
    assert done.code == 0, done.err
    assert 'FIXED' not in done.out
    assert 'onnx: tokens batch x length' in done.out
    deployed = out / 'lm-repl_deployed.py'
    after = score_of(deployed, deployed.with_suffix('.safetensors'), folder / 'test deployed')
    assert after == pytest.approx(before, rel=1e-4)
    vocabulary = torch.load(deployed.with_suffix('.pth'))['meta']['dataset_meta']['vocabulary']
    assert vocabulary[:2] == ['<unk>', '<eos>']
    assert set(vocabulary[2:]) == {f'w{n}' for n in range(30)}


def test_a_warm_start_is_scored_as_the_test_scores_it(folder, trained_e2e):
    checkpoint, out = trained_e2e / 'epoch_2.pth', folder / 'warm.pth'
    done = run('warm_start', folder / 'lm-repl.py', checkpoint, out, '--batches', 3)
    assert done.code == 0, done.err
    assert 'Perplexity' in done.out
    scores = [row['perplexity'] for row in json.loads(out.with_suffix('.json').read_text())['scores'].values()]
    before = score_of(folder / 'lm.py', checkpoint, folder / 'test before')
    after = score_of(folder / 'lm-repl.py', out, folder / 'test after')
    assert [scores[0], scores[-1]] == [pytest.approx(before, rel=1e-4), pytest.approx(after, rel=1e-4)]


def test_runs_are_compared(folder, trained, trained_e2e):
    done = run('compare', trained_e2e, trained, '--out', folder / 'compared')
    assert done.code == 0, done.err
    rows = {row['label']: row for row in json.loads((folder / 'compared/comparison.json').read_text())['rows']}
    assert rows['Perplexity']['values'][0] > 1
    assert rows['Sequences per second']['values'][0] > 0
    one, other = rows['Parameters']['values']
    # One layer less, two numbers more.
    assert one - other == 4 * 16**2 + 4 * 16 + 2 * 16 * 24 + 24 + 16 + 4 * 16 - 2
    assert 'sequences per step' in (folder / 'compared/comparison.md').read_text()


def test_its_cost_has_a_table():
    done = run('cost', RECIPE)
    assert done.code == 0, done.err
    assert 'one sequence of 128' in done.out.replace('\n', ' ')


def test_its_sites_have_a_table():
    done = run('sites', RECIPE)
    assert done.code == 0, done.err
    assert 'layers.3  (0, 3)' in done.out


def test_the_recipe_is_the_papers():
    config = Config.fromfile(RECIPE)
    optimizer = config.optim_wrapper
    assert (optimizer.type, optimizer.dtype, optimizer.clip_grad.max_norm) == ('AmpOptimWrapper', 'float16', 1.0)
    assert (optimizer.optimizer.type, optimizer.optimizer.lr, optimizer.optimizer.weight_decay) == ('AdamW', 3e-4, 0.01)
    assert (config.train_cfg.max_epochs, config.train_dataloader.batch_size) == (20, 64)
    data, net = config.train_dataloader.dataset, config.model.backbone
    assert (data.type, data.bptt, data.columns) == ('WikiText2', 128, 64)
    assert (net.depth, net.embed_dims, net.num_heads, net.feedforward_channels) == (12, 512, 8, 2048)
    assert {loader.dataset.num_tokens for loader in (config.train_dataloader, config.test_dataloader)} == {
        net.num_tokens
    }


BAD = {
    'no data': (('train', RECIPE), 'is missing: get WikiText-2 from https://'),
    'size to count at': (('cost', RECIPE, '--size', 32, 32), 'takes no images: leave the size out'),
    'size of an export': (
        ('deploy', '{config}', '{checkpoint}', '{folder}/other', '--format', 'onnx', '--size', 64, 64),
        '--size is of images',
    ),
    'pictures': (('test', '{config}', '{checkpoint}', '--show-dir', '{folder}/pictures'), '--show-dir draws on images'),
    'INT8': (('quantize', '{folder}/repl', '--out', '{folder}/int8'), 'takes none: leave it out'),
    'plan': (('plan', '{config}', '--save-time', '10%'), 'default_scope is one of mmpretrain'),
    'browse': (('browse_dataset', '{config}', '--out-dir', '{folder}/pictures'), 'default_scope is one of mmpretrain'),
    'words': (
        ('train', '{config}', '--cfg-options', 'train_dataloader.dataset.num_tokens=20'),
        'has a vocabulary of 32 words, the model knows 20',
    ),
}


@pytest.mark.parametrize('case', BAD)
def test_what_it_cannot_do_is_one_sentence(case, folder, trained, monkeypatch):
    monkeypatch.chdir(folder)
    arguments, message = BAD[case]
    names = dict(config=folder / 'lm-repl.py', checkpoint=trained / 'epoch_2.pth', folder=folder)
    done = run(*(str(argument).format(**names) for argument in arguments))
    assert done.code == 2
    assert message in done.err
    assert len([line for line in done.err.splitlines() if line.startswith('error: ')]) == 1
