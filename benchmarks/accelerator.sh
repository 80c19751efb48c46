#!/usr/bin/env bash
# The first twelve minutes of a card: what gptjax wants to know of an accelerator, the most valuable first.
# Each stage is bounded in time, is skipped once it is done, and brings its results out before the next begins.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
  echo "accelerator.sh: $1; see benchmarks/accelerator.sh --help" >&2
  exit 2
}

help="benchmarks/accelerator.sh prepare         here, before: tokenize text and fetch the packages that the other machine lacks
benchmarks/accelerator.sh run [FLAGS]     there: all stages, from where an earlier call stopped
  --seconds N    in all; a stage that would not fit is left to the next call (570)
  --only NAME    one stage: text, sweep, step, step13b, largest, decode or memory
  --tiny         sizes for a CPU, to rehearse every stage
What is carried from call to call lies in .accelerator: tokenized text, packages, compiled programs, results.
Results are also packed into \$OUT (default .accelerator/out): results.tar.gz, and xla.tar.gz with compiled programs.
  PYTHON         the interpreter (default: .venv/bin/python, or else python3)"

home=$PWD/.accelerator
out=${OUT:-$home/out}
python=${PYTHON:-}
[[ -n $python ]] || { [[ -x .venv/bin/python ]] && python=$PWD/.venv/bin/python || python=python3; }
# What gptjax needs and an image for CUDA and PyTorch may lack. Wheels of pure Python serve any machine.
lacking=(cattrs tensorboardX)
most_bytes=$((16 * 1024 * 1024)) # of one file that is brought out

[[ $# -ge 1 ]] || fail "say prepare or run"
[[ $1 != --help ]] || { echo "$help" && exit; }
verb=$1 seconds=570 only='' tiny=''
shift
while [[ $# -gt 0 ]]; do
  case $1 in
    --tiny) tiny=yes && shift && continue ;;
    --seconds) [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || fail "--seconds needs a whole number of at least 1" ;;
    --only) [[ ${2:-} =~ ^(text|sweep|step|step13b|largest|decode|memory)$ ]] || fail "--only ${2:-} is no stage" ;;
    *) fail "$1 is not a flag" ;;
  esac
  declare "${1#--}=$2"
  shift 2
done
[[ -z $tiny ]] || { home=$home/tiny && out=${OUT:-$home/out}; } # a rehearsal has text and results of its own
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
mkdir -p "$home/results" "$out"

gptjax() { "$python" -m gptjax.cli "$@"; }

if [[ $verb == prepare ]]; then
  "$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --platform any -d "$home/wheels" "${lacking[@]}"
  [[ -d $home/store ]] || gptjax data python --tokenizer sentencepiece:4096 --out "$home/store"
  du -sh "$home"/*
  exit
fi
[[ $verb == run ]] || fail "$verb is neither prepare nor run"

if [[ -d $home/wheels ]]; then
  "$python" -m pip install -q --no-index --no-deps --upgrade --target "$home/site" "$home"/wheels/*.whl
  export PYTHONPATH=$PYTHONPATH:$home/site
fi
for archive in "$home"/*.tar.gz; do # what an earlier call brought out and the user put back
  [[ -e $archive ]] && tar -xzf "$archive" -C "$home" && rm "$archive"
done
export JAX_COMPILATION_CACHE_DIR=$home/xla JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.5
export TORCHINDUCTOR_CACHE_DIR=$home/inductor

failed=()
left() { echo $((seconds - SECONDS)); }

# Pack NAME from folders of .accelerator into $out; a pack that is too large to bring out is named and left behind.
bring_out() {
  local name=$1
  shift
  tar -czf "$out/$name.tmp" -C "$home" "$@" 2> /dev/null || true
  if [[ $(stat -c %s "$out/$name.tmp") -le $most_bytes ]]; then
    mv "$out/$name.tmp" "$out/$name"
  else
    rm "$out/$name.tmp"
    echo "$name is too large to bring out"
  fi
}

# Run stage NAME within LIMIT seconds, unless it is done, is not asked for, or less than LEAST seconds are left.
stage() {
  local name=$1 least=$2 limit=$3 began=$SECONDS code=0
  shift 3
  [[ -z $only || $only == "$name" ]] || return 0
  [[ ! -e $home/results/$name.done ]] || { echo "== $name: done before" && return 0; }
  if [[ $(left) -lt $least ]]; then
    echo "== $name: left to the next call ($(left) s remain, and it needs $least)"
    return 0
  fi
  [[ $(left) -ge $limit ]] || limit=$(left)
  echo "== $name, at most $limit s"
  timeout -k 10 "$limit" "$@" > "$home/results/$name.log" 2>&1 || code=$?
  tail -n 40 "$home/results/$name.log"
  [[ $code == 0 ]] && touch "$home/results/$name.done" || failed+=("$name")
  echo "== $name: exit code $code after $((SECONDS - began)) s"
  bring_out results.tar.gz results
}

# Tokenize text, unless it was carried along.
tokenize() { [[ -d $home/store ]] || gptjax data "$@" --out "$home/store"; }

# Run a sweep and keep its results, which are small, apart from its checkpoints, which are not.
run_sweep() {
  local code=0
  gptjax sweep "$@" --set "base.data.sources=[{\"corpus\": \"$home/store\"}]" --dir "$home/sweep" || code=$?
  mkdir -p "$home/results/sweep"
  (cd "$home/sweep" && cp -r ./*.json ./*.csv ./*.html "$home/results/sweep/") || true
  return $code
}
export -f gptjax tokenize run_sweep
export home python

if [[ -n $tiny ]]; then
  text=(markov:documents=400 --tokenizer bytes)
  sweep=(experiments/chinchilla/quick.py --set base.data.tokenizer=bytes --set 'budgets=[2e9,4e9,8e9]'
    --set 'sizes=[8,12,16,24,32]' --set 'tokens_per_param=[0.1,10000]' --set min_steps=5 --set holdout=0
    --set workers=1 --set pack=4 --set base.evaluate.sequences=64)
  step=(--shapes 0 --turns 2) step13b=(--shapes 0 --turns 1 --names torch)
  largest=(--shapes 0 --largest --limit 0.5 --seconds 60) decode=(--turns 1) memory=(--shapes 0)
else
  text=(python --tokenizer sentencepiece:4096)
  sweep=(experiments/chinchilla/h200.py:short)
  step=(--shapes 0 --turns 4 --names torch.compile) step13b=(--shapes 1 --turns 3 --names torch.compile)
  largest=(--shapes 0 --largest --seconds 150) decode=(--turns 3) memory=(--shapes "0,1")
fi

stage text 20 120 bash -euc 'tokenize "$@"' - "${text[@]}"
stage sweep 120 400 bash -euc 'run_sweep "$@"' - "${sweep[@]}"
stage step 90 150 "$python" benchmarks/step.py "${step[@]}" --json "$home/results/step.json"
stage step13b 150 240 "$python" benchmarks/step.py "${step13b[@]}" --json "$home/results/step13b.json"
stage largest 60 200 "$python" benchmarks/memory.py "${largest[@]}" --json "$home/results/largest.json"
stage decode 60 120 "$python" benchmarks/generate.py "${decode[@]}" --json "$home/results/decode.json"
stage memory 60 200 "$python" benchmarks/memory.py "${memory[@]}" --json "$home/results/memory.json"
bring_out xla.tar.gz xla inductor
ls -l "$out"
[[ ${#failed[@]} == 0 ]] || { echo "accelerator.sh: failed: ${failed[*]}; their logs are in .accelerator/results" >&2 && exit 1; }
