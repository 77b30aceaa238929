"""What draws predictions when the arguments are read."""

import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.model import BaseModel
from mmengine.registry import DATASETS
from rich.progress import track
from torchvision.datasets.folder import IMG_EXTENSIONS

from repl_mm.cli.config import load_scoped_config
from repl_mm.cli.runner import build_model
from repl_mm.datasets.checks import is_truncated
from repl_mm.engine.errors import explain, printable
from repl_mm.engine.files import require_regular, write_atomic
from repl_mm.engine.weights import load_strict, read_checkpoint
from repl_mm.visualization import as_png, draw, name_pictures


def find_images(path: Path, *, out_dir: Path) -> dict[Path, Path]:
    """The picture to write for each image, in folders of the same names for those in folders of their own."""
    if not path.exists():
        raise ValueError(f'there is no image or folder {path}')
    if out_dir.resolve() == (path if path.is_dir() else path.parent).resolve():
        raise ValueError(f'--out-dir {out_dir} is the folder of the images: give another one')
    images, root = [path], path.parent
    if path.is_dir():
        root = path
        # Pictures of an earlier call are no images.
        files = [p for p in path.rglob('*') if p.is_file() and out_dir.resolve() not in p.resolve().parents]
        images = sorted(p for p in files if p.suffix.lower() in IMG_EXTENSIONS)
        others = sorted(str(p.relative_to(path)) for p in set(files).difference(images))
        if not images:
            raise ValueError(
                f'there is no image in {path}: give one or a folder with {", ".join(IMG_EXTENSIONS)} files'
            )
        if others:
            print(f'Skipped {len(others)} of another kind: {", ".join(others[:3])}{", ..." if others[3:] else ""}')
    names = name_pictures(images, root=root)
    return {image: out_dir / names[str(image)] for image in images}


def load_model(config: Config, checkpoint: Mapping[str, Any], *, source: str, device: str) -> BaseModel:
    model = build_model(config)
    load_strict(model, checkpoint, source=source)
    with explain(f'cannot use --device {device}'):
        model.to(device)
    model.eval()
    return model


def read_meta(config: Config, checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Classes and colours: of the data set that the model was trained on, else of the config's."""
    if meta := checkpoint.get('meta', {}).get('dataset_meta'):
        return meta
    with explain(f'cannot read the classes of test_dataloader in {config.filename}'):
        return DATASETS.build(ConfigDict(config.test_dataloader.dataset, lazy_init=True)).metainfo


def build_pipeline(config: Config) -> tuple[Compose, Compose]:
    """The loading of an image, and what follows; data sets in memory have no loading of their own."""
    steps = [step for step in config.test_dataloader.dataset.pipeline if not step['type'].endswith('LoadAnnotations')]
    loading = [step for step in steps if step['type'].endswith('LoadImageFromFile')]
    with explain(f'cannot build the pipeline of test_dataloader in {config.filename}'):
        return Compose(loading or [dict(type='LoadImageFromFile')]), Compose([s for s in steps if s not in loading])


def read_image(path: Path, load: Compose) -> dict:
    # Decoders may raise anything, or go on with a half that is grey.
    with explain(f'cannot read {path}', errors=Exception):
        require_regular(path)
        if is_truncated(path):
            raise ValueError('the file is truncated')
        return load(dict(img_path=str(path), img_id=0))


@torch.no_grad()
def run(args: Namespace) -> None:
    pictures = find_images(args.images, out_dir=args.out_dir)
    config = load_scoped_config(args, sections=('model', 'test_dataloader'))
    checkpoint = read_checkpoint(args.checkpoint)
    model = load_model(config, checkpoint, source=args.checkpoint, device=args.device or get_device())
    meta = read_meta(config, checkpoint)
    load, transform = build_pipeline(config)
    args.out_dir.mkdir(parents=True, exist_ok=True)
    problems = []
    for image, picture in track(pictures.items(), 'Predicting: '):
        try:
            data = read_image(image, load)
        except ValueError as error:
            problems.append(error)
            continue
        pixels = data['img'].copy()  # some transforms write into it
        [sample] = model.test_step(pseudo_collate([transform(data)]))
        drawn = draw(pixels, sample, scope=config.default_scope, meta=meta, truth=False, score_thr=args.score_thr)
        write_atomic(picture, as_png(drawn))
    for problem in problems:
        print(f'error: {problem}', file=sys.stderr)
    print(printable(f'Wrote {len(pictures) - len(problems)} picture(s) to {args.out_dir}'))
    if problems:
        raise SystemExit(1)
