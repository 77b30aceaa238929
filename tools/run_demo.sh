#!/usr/bin/env bash
# Train a small model end to end and with RepL from the same weights, evaluate both, and compare them.
# Usage: tools/run_demo.sh [classification|vit]
set -euo pipefail
cd "$(dirname "$0")/.."

task=${1:-classification}
case $task in
  classification) model=resnet32 ;;
  vit) model=vit-tiny ;;
  *) echo "error: there is no demo '$task': choose classification or vit" >&2; exit 2 ;;
esac
out=work_dirs/demo/$task
trap 'echo; echo "Interrupted. The same command starts over."; exit 130' INT

if [ -e "$out" ]; then
  echo "Starting over: removing the earlier results in $out"
  rm -rf "$out"
fi

echo "== Seed checkpoint: both runs start from these weights"
python tools/seed_checkpoint.py "configs/demo/${model}_digits.py" "$out/seed.pth"

run() {
  local name=$1 config=$2
  echo "== $name: training $config"
  python tools/train.py "$config" --work-dir "$out/$name" --cfg-options load_from="$out/seed.pth"
  echo "== $name: evaluation"
  python tools/test.py "$config" "$(cat "$out/$name/last_checkpoint")" --work-dir "$out/$name/test"
}
run E2E "configs/demo/${model}_digits.py"
run RepL "configs/demo/${model}-repl_digits.py"

echo "== Comparison"
python tools/compare.py "$out/E2E" "$out/RepL" --out "$out"
