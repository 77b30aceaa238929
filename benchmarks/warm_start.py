"""One table of what ``tools/warm_start.py`` has written: CSV and Markdown.

    python benchmarks/warm_start.py OUT.csv 'the networks, in a sentence' NAME=warm.json [NAME=warm.json ...]

Runs of one name are seeds of the same: the table has their mean, what each of them loses, and the share of what a block
adds that no coefficients of its site explain on the batches (the squared error of the least squares), least to most.
"""

import csv
import json
import sys
from pathlib import Path
from statistics import mean

from repl_mm.analysis.tables import Table

METRICS = {'accuracy/top1': ('top-1 (%)', 1), 'coco/bbox_mAP': ('AP x 100', 100), 'mIoU': ('mIoU (%)', 1)}


def main(out: str, networks: str, *runs: str) -> None:
    """Write the table of runs."""
    found: dict[str, list[list[float]]] = {}
    left: dict[str, list[float]] = {}
    steps: list[str] = []
    titles = {}
    for run in runs:
        name, _, path = run.partition('=')
        record = json.loads(Path(path).read_text())
        scores = record['scores']
        steps = list(scores)
        key = next(key for key in METRICS if key in scores[steps[0]])
        titles[name], factor = METRICS[key]
        found.setdefault(name, []).append([factor * row[key] for row in scores.values()])
        left.setdefault(name, []).extend(site['unexplained'] for site in record['sites'].values())
    rows = [
        [
            name,
            titles[name],
            *(f'{mean(step):.2f}' for step in zip(*seeds, strict=True)),
            ', '.join(f'{seed[0] - seed[-1]:+.2f}' for seed in seeds),
            f'{min(left[name]):.2f} to {max(left[name]):.2f}',
        ]
        for name, seeds in found.items()
    ]
    header = ['network, sites', 'score', *steps, 'lost, by seed', 'unexplained, by site']
    with open(out, 'w', newline='') as file:
        csv.writer(file, lineterminator='\n').writerows([header, *rows])
    table = Table(header, 'll' + 'r' * (len(steps) + 2), rows)
    Path(out).with_suffix('.md').write_text(
        '# What a warm start brings back, without training\n\n'
        'By `benchmarks/warm_start.py` from what `tools/warm_start.py CONFIG CHECKPOINT OUT --batches 20` wrote '
        'with `every=4`: mean over seeds where there are several. *Unexplained* is the share of what a block adds that '
        f'no coefficients of its site explain on those batches: the least squares. {networks}\n\n' + table.markdown()
    )


if __name__ == '__main__':
    main(*sys.argv[1:])
