"""What deploys a checkpoint when the arguments are read."""

import copy
import json
import math
import os
import shlex
import shutil
import tempfile
import warnings
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.registry import DATASETS
from rich.progress import track
from torch import Tensor, nn

from repl_mm import __version__
from repl_mm.analysis.tables import Table
from repl_mm.backbones.configs import is_adaptive, with_repl
from repl_mm.cli.config import SCOPES, load_scoped_config
from repl_mm.cli.runner import build_model
from repl_mm.deployment import deploy, example_inputs, parity, takes_images
from repl_mm.engine.checkpoints import as_safetensors
from repl_mm.engine.errors import HOST_ERRORS, explain, printable, summarise
from repl_mm.engine.files import write_atomic
from repl_mm.engine.weights import load_strict, read_checkpoint
from repl_mm.export import EXPORTS
from repl_mm.export.graph import (
    AXES,
    INPUTS,
    OPSET,
    TOLERANCE,
    another_shape,
    as_onnx,
    as_torch,
    check,
    input_shape,
    trace,
    tracing_size,
)
from repl_mm.surgery import computing_layers, sites_of

# Height and width that the models are compared at: all strides and pyramids divide them.
SIZES = ((128, 192), (192, 128))
# Pixels up to which an image of the validation set is also compared as it is; in float64 large ones take minutes.
LARGEST = 512 * 512


def pick_weights(checkpoint: Mapping[str, Any], *, ema: bool) -> dict[str, Tensor]:
    """The moving average of the weights, or the weights that the optimizer had."""
    weights = dict(checkpoint.get('state_dict', checkpoint))
    averaged = checkpoint.get('ema_state_dict')
    if not isinstance(averaged, Mapping):
        return weights
    # mmengine exchanges the two when it saves: the average is in `state_dict`.
    if not ema:
        weights |= {key.removeprefix('module.'): v for key, v in averaged.items() if key.startswith('module.')}
    print(f'The checkpoint holds a moving average (EMA): taking {"it" if ema else "the weights themselves"}')
    return weights


def load_model(config: Config, args: Namespace) -> tuple[BaseModel, dict[str, Any]]:
    """The trained model and the meta data to keep."""
    backbone = config.model.get('backbone', {})
    if backbone.get('deploy'):
        raise ValueError(f'{args.config} is deployed already: give the config of the training')
    checkpoint = read_checkpoint(args.checkpoint)
    weights = pick_weights(checkpoint, ema=not args.no_ema)
    model = build_model(config)
    load_strict(model, {'state_dict': weights}, source=args.checkpoint)
    if not computing_layers(model) and not args.fuse_all:
        raise ValueError(
            f'the model of {args.config} has no computing layers, there is nothing to deploy; --fuse-all folds batch '
            'norms, where there are any'
        )
    return model.eval(), {'repl_mm': __version__} | plain_meta(checkpoint)


def plain_meta(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the data set, as plain values that any loader reads."""
    meta = checkpoint.get('meta')
    dataset_meta = meta.get('dataset_meta') if isinstance(meta, Mapping) else None
    if not dataset_meta:
        return {}
    return {'dataset_meta': json.loads(json.dumps(dataset_meta, default=lambda v: getattr(v, 'tolist', v.__str__)()))}


def read_inputs(config: Config, model: BaseModel) -> list[Tensor]:
    """Two samples of the validation set as the model takes them, or none where the data is not there."""
    try:
        dataset = DATASETS.build((config.get('val_dataloader') or config.test_dataloader).dataset)
        batches = [pseudo_collate([dataset[index]]) for index in (0, len(dataset) - 1)]
        inputs = [model.data_preprocessor(batch, False)['inputs'] for batch in batches]
        return [one if isinstance(one, Tensor) else torch.stack(one) for one in inputs]
    except HOST_ERRORS as error:
        print(f'No inputs of the validation set to check with: {summarise(error)}')
        return []


def batches_of_images(model: nn.Module, images: list[Tensor]) -> list[tuple[str, Tensor]]:
    """Images of several sizes to compare models on, random ones and those that are given, each with its name."""
    least = getattr(model.backbone, 'least_side', 0)
    sizes = list(dict.fromkeys((max(height, least), max(width, least)) for height, width in SIZES))
    batches = [('random', torch.randn(2, 3, *size)) for size in sizes]
    for size in sizes if images else ():
        resized = [nn.functional.interpolate(image, size, mode='bilinear') for image in images]
        batches.append(('validation set, resized', torch.cat(resized)))
    return batches + [('validation set', image) for image in images if image[0, 0].numel() <= LARGEST]


def batches_of_others(model: nn.Module, inputs: list[Tensor]) -> list[tuple[str, Tensor]]:
    """The same of what a model for something else takes."""
    longest = example_inputs(model, 2)
    shorter = example_inputs(model, 3, another_shape(longest.shape)[1:])
    return [('random', longest), ('random', shorter), *(('validation set', one) for one in inputs)]


def check_parity(model: nn.Module, static: nn.Module, inputs: list[Tensor], *, fuse_all: bool) -> None:
    """Show the differences; raise ValueError where they are more than rounding."""
    # In float64 only an error can be seen, in float32 also what rounding does to the weights that are written.
    exact = deploy(copy.deepcopy(model).double(), fuse_all=fuse_all)
    batches = (batches_of_images if takes_images(model) else batches_of_others)(model, inputs)
    rows, equal = [], True
    for name, batch in track(batches, 'Comparing: ', transient=True):
        double, single = (
            parity(ours, model, batch, dtype=dtype) for ours, dtype in ((exact, torch.double), (static, torch.float))
        )
        if math.isnan(parity(model, model, batch, dtype=torch.float)):
            raise ValueError(f'the trained model itself gives NaN on inputs ({name}): look at its norms')
        equal &= double <= 1e-10 and single <= 1e-5  # false for NaN too
        size = ' x '.join(map(str, batch.shape[2:] or batch.shape[1:]))
        rows.append([name, size, f'{double:.1e}', f'{single:.1e}'])
    kind = ['Images', 'Height x width'] if takes_images(model) else ['Sequences', 'Length']
    title = 'Relative difference from the trained model'
    Table([*kind, 'float64', 'float32'], 'llrr', rows, title=title).print()
    if not equal:
        raise ValueError('the static model does not equal the trained one, see the table: nothing was written')


def deployed_config(config: Config, model: BaseModel, *, fuse_all: bool) -> Config:
    """The config that the deployed weights of a model belong to."""
    if is_adaptive(config):
        sites = [tuple(site) for site in sites_of(model.backbone.repl_stages().values())]
        config = with_repl(config, policy='explicit', sites=sites)
    config = Config({key: value for key, value in config.to_dict().items() if key not in ('work_dir', 'launcher')})
    config.model.backbone.update(deploy=dict(fuse_all=True) if fuse_all else True, init_cfg=None)
    for part in (config.model, config.model.backbone):
        if 'pretrained' in part:
            part.pretrained = None
    config.update(load_from=None, resume=False)
    return config


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that becomes it at the end, or vanishes after an error."""
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f'{out} is there already: give a new folder')
    out.parent.mkdir(parents=True, exist_ok=True)
    # Made inside, as a temporary folder is for nobody else to read.
    temporary = Path(tempfile.mkdtemp(prefix=f'.{out.name}.', dir=out.parent))
    part = temporary / out.name
    part.mkdir()
    try:
        yield part
        os.replace(part, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def size_to_trace(exported: nn.Module, static: nn.Module) -> Sequence[int]:
    """Height and width, or length, of the inputs to trace a model with that is exported as a whole or in part."""
    if not takes_images(exported):
        return example_inputs(exported, 1).shape[1:]
    # At its own size a ViT does not resize its position embeddings, which an exported graph does for some sizes only.
    return getattr(static.backbone, 'img_size', None) or tracing_size(exported, SIZES[0])


def write_exports(static: nn.Module, path: Path, args: Namespace) -> None:
    exported = static.backbone if args.backbone_only else static
    with explain(f'cannot trace the model at {" x ".join(map(str, args.size))}' if args.size else 'cannot trace'):
        program = trace(exported, args.size or size_to_trace(exported, static))
    axes = input_shape(program)
    kind, shape = INPUTS[len(axes)], ' x '.join(map(str, axes))
    for name, axis in zip(AXES[len(axes)], axes, strict=True):
        if isinstance(axis, int) and name != 'channels':
            print(f'FIXED: the exports take {kind} of {name} {axis} alone; --size exports for another size')
    for format in args.format:
        content = as_onnx(program, model=exported) if format == 'onnx' else as_torch(program)
        difference = check(exported, program, content, format=format)
        if not difference <= TOLERANCE:
            raise ValueError(f'the export as {format} differs by {difference:.1e} from the model: nothing was written')
        opset = f', opset {OPSET}' if format == 'onnx' else ''
        print(f'{format}: {kind} {shape}{opset}, relative difference {difference:.1e}')
        write_atomic(path.with_suffix(EXPORTS[format]), content)


def run(args: Namespace) -> None:
    config = load_scoped_config(args, sections=('model', 'test_dataloader'), scopes=SCOPES)
    with new_folder(args.out) as folder:
        MMLogger.get_instance('mmengine', log_level='WARNING')
        model, meta = load_model(config, args)
        static = deploy(model, fuse_all=args.fuse_all)
        if args.size and not takes_images(model):
            raise ValueError(f'--size is of images, and {args.config} takes none: leave it out')
        check_parity(model, static, read_inputs(config, model), fuse_all=args.fuse_all)
        path = folder / f'{Path(args.config).stem}_deployed.py'
        deployed_config(config, model, fuse_all=args.fuse_all).dump(path)
        buffer = BytesIO()
        torch.save({'state_dict': static.state_dict(), 'meta': meta}, buffer)
        write_atomic(path.with_suffix('.pth'), buffer.getvalue())
        write_atomic(path.with_suffix('.safetensors'), as_safetensors(static.state_dict(), meta=meta))
        if args.format:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # torch's of itself
                write_exports(static, path, args)
    written = args.out / path.name
    command = shlex.join(['python', 'tools/test.py', str(written), str(written.with_suffix('.pth'))])
    print(printable(f'Wrote {args.out}. To test it: {command}'))
