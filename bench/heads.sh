#!/usr/bin/env bash
# Every layout of probes and of verdict heads side by side: the same rows, model and test queries, beside the model untrained.
#   bash bench/heads.sh LABELS OUT [flags of train-judge, such as --where 'split!=test' or --balance rows]
# The demo's labels take about an hour on two cores. In OUT: a folder per judge, and metrics.parquet with every figure.
set -euo pipefail
labels=$1 out=$2
shift 2
verdict=(--epochs 2 --lora-layers 10 --learning-rate 1e-3 --batch-size 8)
judges=()
for head in ${HEADS:-probe verdict}; do
  for layout in 3-for-3 1-for-3 1-for-all; do
    flags=(--head "$head" --layout "$layout")
    if [ "$head" = verdict ]; then flags+=("${verdict[@]}"); fi
    tjd train-judge "$labels" --base embedded "${flags[@]}" "$@" -o "$out/$head-$layout"
    judges+=(-j "$out/$head-$layout")
  done
done
tjd eval-judge "$labels" "${judges[@]}" --teacher hf:embedded -o "$out/metrics.parquet"
