#!/usr/bin/env bash
# The main job, end to end, on the embedded 135M model: distil judges from recorded verdicts, then train a policy with them.
#   make demo                      under ten minutes on two cores
#   make demo FULL=1               also fine-tunes judges and compares them; a longer policy run; in demo-full: half an hour
#   make demo TEACHER=gemini/...   the same against a live teacher, its key in the environment: this costs money
set -euo pipefail

data="$(cd "$(dirname "$0")" && pwd)"
out="${OUT:-demo${FULL:+-full}${TEACHER:+-live}}"
teacher="${TEACHER:-recorded:$data/recorded.parquet}"
if [ -n "${FULL:-}" ]; then
  steps=40 live=24 taught=0
else
  steps=24 live=8 taught=16
fi
if [ -n "${TEACHER:-}" ]; then
  votes=1 told=""
else
  votes=3 told="
   (720 of them have one recorded vote; the other two calls count as failed, and the one vote stands.)"
  export HF_HUB_OFFLINE=1
fi
mkdir -p "$out"
export TOKENIZERS_PARALLELISM=false

say() { printf '\n\033[1;36m%s\033[0m\n' "$*"; }
run() {
  printf '\033[1m$ tjd %s\033[0m\n' "$*"
  local start=$SECONDS
  tjd "$@"
  printf '\033[2m(%d s)\033[0m\n' $((SECONDS - start))
}

say "1. The teacher weaves a soft constraint into each query; the training split's queries bring a rule constraint too."
run synthesize "$data/queries.parquet" --teacher "$teacher" -o "$out/instructions.parquet"

say "2. The embedded model responds to a few test instructions, with and without the constraints shown."
run sample "$out/instructions.parquet" --model hf:embedded --where split=test --limit $live --max-tokens 64 \
  -o "$out/responses.parquet"

say "3. The teacher labels a pool of 1,750 responses, one constraint at a time; the majority of the votes counts.$told"
run label "$data/pool.parquet" --teacher "$teacher" --votes $votes -o "$out/labels.parquet"
if [ -n "${TEACHER:-}" ]; then
  run label "$out/responses.parquet" --teacher "$teacher" -o "$out/live-labels.parquet"
fi

say "4. One tiny judge per category learns those verdicts: a probe of the model's hidden states, with hack probes as negatives."
run train-judge "$out/labels.parquet" --base embedded --head probe --harden 0.3 --where 'split!=test' -o "$out/judges"
compared=(-j "$out/judges")
if [ -n "${FULL:-}" ]; then
  say "   The paper's way, fine-tuning the model to say Yes or No, to compare:"
  run train-judge "$out/labels.parquet" --base embedded --where 'split!=test' --epochs 2 --lora-layers 10 \
    --learning-rate 1e-3 --batch-size 8 -o "$out/judges-verdict"
  compared+=(-j "$out/judges-verdict")
fi

say "5. The judges give the live responses a score and a verdict."
run score "$out/responses.parquet" --judges "$out/judges" -o "$out/scores.parquet"

say "6. GRPO: the reward is the mean of the rule checks plus the mean of the judges' scores.
   (Twelve instructions with a judge come round every six steps, so that steps can be compared; with FULL=1 all of them.)"
run rl "$out/instructions.parquet" --judges "$out/judges" --policy embedded --where split=train --limit $taught --steps $steps \
  --prompts-per-step 2 --group-size 8 --micro-batch 8 --max-prompt-tokens 128 --max-response-tokens 32 \
  --learning-rate 1e-3 --lora-layers 10 --soft-reward score -o "$out/policy"

say "7. What the judges are worth on queries they never saw, beside the same model untrained. First all rows,
   then by the model that responded: three quarters of the frontier's violations are near misses."
run eval-judge "$out/labels.parquet" "${compared[@]}" --teacher hf:embedded --by model --figure "$out/judges.svg" \
  -o "$out/metrics.parquet"
echo "How often they accept responses that deserve nothing (texts they were not hardened on, test queries):"
run probe-hacks "$out/labels.parquet" -j "$out/judges" -o "$out/hacks.parquet"

say "8. The reward over the steps of the policy's training."
run show "$out/policy/rollouts.parquet" --rows 0 --only 'reward by step'
printf '\nEverything is in %s: tables (tjd show FILE), judges.svg, judges/card.md, policy/.\n' "$out"
