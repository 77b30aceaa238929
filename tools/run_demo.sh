#!/usr/bin/env bash
# Train a small model end to end and with RepL from the same weights, evaluate both, and compare them.
# Usage: tools/run_demo.sh [classification|vit|detection|segmentation|language]
set -euo pipefail
cd "$(dirname "$0")/.."

task=${1:-classification}
data=
topic=digits
case $task in
  classification) model=resnet32 repl=resnet32-repl ;;
  vit) model=vit-tiny repl=vit-tiny-repl ;;
  detection) model=retinanet_r34_fpn repl=retinanet_r34-repl_fpn data=coco ;;
  segmentation) model=deeplabv3plus_r34-d8 repl=deeplabv3plus_r34-d8-repl data=cityscapes ;;
  language) model=transformer-lm repl=transformer-lm-repl topic=topics ;;
  *) echo "error: there is no demo '$task': choose classification, vit, detection, segmentation or language" >&2; exit 2 ;;
esac
out=work_dirs/demo/$task
trap 'echo; echo "Interrupted. The same command starts over."; exit 130' INT

if [ -e "$out" ]; then
  echo "Starting over: removing the earlier results in $out"
  rm -rf "$out"
fi

if [ -n "$data" ]; then
  echo "== Scenes of handwritten digits, in the format of $data"
  rm -rf "data/digits/$data"
  python tools/make_digit_scenes.py "$data" "data/digits/$data"
fi

echo "== Seed checkpoint: both runs start from these weights"
python tools/seed_checkpoint.py "configs/demo/${model}_$topic.py" "$out/seed.pth"

run() {
  local name=$1 config=$2
  echo "== $name: training $config"
  python tools/train.py "$config" --work-dir "$out/$name" --cfg-options load_from="$out/seed.pth"
  echo "== $name: evaluation"
  python tools/test.py "$config" "$(cat "$out/$name/last_checkpoint")" --work-dir "$out/$name/test"
}
run E2E "configs/demo/${model}_$topic.py"
run RepL "configs/demo/${repl}_$topic.py"

echo "== Comparison"
python tools/compare.py "$out/E2E" "$out/RepL" --out "$out"
if [ "$task" = language ]; then
  python -c '
from repl_mm.datasets.text import PythonTopics, unigram_perplexity
train, valid = (PythonTopics(split=split, num_tokens=3_000) for split in PythonTopics.splits)
print(f"Guessing each word by its frequency alone has a perplexity of {unigram_perplexity(train, valid):.1f}.")'
fi
if [ -n "$data" ]; then
  python tools/show_predictions.py "$out/E2E" "$out/RepL" --out "$out/predictions.png"
fi
