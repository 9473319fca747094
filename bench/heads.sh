#!/usr/bin/env bash
# Every layout of probes and of verdict heads side by side: the same rows, model and test queries, beside the model untrained.
#   bash bench/heads.sh LABELS OUT [flags of train-judge, such as --where 'split!=test' or --balance rows]
# HEADS names the heads, LAYOUTS the layouts; for the head `encoder`, ENCODER is the folder of one. The demo's labels take about an
# hour on two cores. In OUT: a folder per judge, and metrics.parquet with every figure.
set -euo pipefail
labels=$1 out=$2
shift 2
declare -A of_head=(
  [probe]="--base embedded"
  [verdict]="--base embedded --epochs 2 --lora-layers 10 --learning-rate 1e-3 --batch-size 8"
  [encoder]="--base ${ENCODER:-ENCODER} --epochs 8 --patience 2 --learning-rate 1e-4"
)
judges=()
for head in ${HEADS:-probe verdict}; do
  for layout in ${LAYOUTS:-3-for-3 1-for-3 1-for-all}; do
    read -ra flags <<<"${of_head[$head]}"
    tjd train-judge "$labels" --head "$head" --layout "$layout" "${flags[@]}" "$@" -o "$out/$head-$layout"
    judges+=(-j "$out/$head-$layout")
  done
done
tjd eval-judge "$labels" "${judges[@]}" --teacher hf:embedded -o "$out/metrics.parquet"
