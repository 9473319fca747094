#!/usr/bin/env bash
# The main job, end to end, on the embedded 135M model: distil judges from recorded verdicts, then train a policy with them.
#   make demo                      a few minutes on two cores
#   make demo FULL=1               every row, more epochs, more steps: up to an hour
#   make demo TEACHER=gemini/...   the same against a live teacher (its key in the environment); its labels cost money
set -euo pipefail

data="$(cd "$(dirname "$0")" && pwd)"
out="${OUT:-demo}"
teacher="${TEACHER:-recorded:$data/recorded.parquet}"
mkdir -p "$out"

if [ -n "${FULL:-}" ]; then
  train_rows=0 epochs=4 steps=60 live=24
else
  train_rows=900 epochs=2 steps=12 live=8
fi

run() {
  printf '\n\033[1m$ tjd %s\033[0m\n' "$*"
  local start=$SECONDS
  tjd "$@"
  printf '\033[2m  %d s\033[0m\n' $((SECONDS - start))
}

echo "1. The teacher weaves a soft constraint into each query (some queries bring a rule constraint too)."
run synthesize "$data/queries.parquet" --teacher "$teacher" -o "$out/instructions.parquet"

echo; echo "2. The embedded model responds to a few test instructions, with and without the constraint shown."
run sample "$out/instructions.parquet" --model hf:embedded --where split=test --limit $live --max-tokens 64 \
  -o "$out/responses.parquet"

echo; echo "3. The teacher labels the pool: three votes, the majority counts."
run label "$data/pool.parquet" --teacher "$teacher" --votes 3 -o "$out/labels.parquet"

echo; echo "4. One tiny judge per category learns those verdicts."
run train-judge "$out/labels.parquet" --base embedded --limit $train_rows --epochs $epochs --lora-layers 10 \
  -o "$out/judges"

echo; echo "5. What the judges are worth on queries they never saw, beside the same model untrained."
run eval-judge "$out/labels.parquet" --judges "$out/judges" --teacher hf:embedded -o "$out/metrics.parquet"
