#!/usr/bin/env bash
# Run a command on the GPUs of this machine: launch/gpu_node.sh [FLAGS] -- gptjax train FILE --dir DIR
# One process for all GPUs needs nothing but the command itself. One process per GPU starts that many, hands each its
# device and its place among them, passes SIGTERM on, and ends them all when one fails.
set -euo pipefail

fail() {
  echo "gpu_node.sh: $1; see launch/gpu_node.sh --help" >&2
  exit 2
}

help="launch/gpu_node.sh [FLAGS] -- COMMAND...
  --gpus N     use the first N GPUs (default: all that nvidia-smi lists)
  --per-gpu    one process for each GPU (default: one process for all)
  --port N     port on which the processes meet (12321)
  --grace N    seconds between SIGTERM and SIGKILL for the others when one fails (60)
  --dry-run    print the commands and run nothing"

gpus='' per_gpu='' port=12321 grace=60 dry_run=''
while [[ $# -gt 0 && $1 != -- ]]; do
  case $1 in
    --help) echo "$help" && exit ;;
    --dry-run) dry_run=yes && shift && continue ;;
    --per-gpu) per_gpu=yes && shift && continue ;;
    --gpus | --port | --grace) ;;
    *) fail "$1 is not a flag" ;;
  esac
  [[ $# -ge 2 && $2 =~ ^[1-9][0-9]*$ ]] || fail "$1 needs a whole number of at least 1"
  declare "${1#--}=$2"
  shift 2
done
[[ $# -ge 2 ]] || fail "no command; put it after --"
shift
IFS=, read -ra visible <<< "${CUDA_VISIBLE_DEVICES:-}"
if [[ -z $gpus ]]; then
  gpus=${#visible[@]}
  [[ $gpus -ge 1 ]] || gpus=$(nvidia-smi --list-gpus 2> /dev/null | wc -l) || true
  [[ $gpus -ge 1 ]] || fail "nvidia-smi lists no GPU here; say how many with --gpus"
fi
[[ ${#visible[@]} -ge 1 ]] || mapfile -t visible < <(seq 0 $((gpus - 1)))
[[ ${#visible[@]} -ge $gpus ]] || fail "--gpus $gpus is more than CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES; ask for fewer"
visible=("${visible[@]:0:gpus}")

# Print the assignments that process $1 of the node starts with.
place() {
  if [[ -n $per_gpu ]]; then
    echo "CUDA_VISIBLE_DEVICES=${visible[$1]} GPTJAX_COORDINATOR=localhost:$port GPTJAX_PROCESSES=$gpus GPTJAX_PROCESS=$1"
  else
    echo "CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${visible[*]}")"
  fi
}

quoted() { printf '%q ' "$@" | sed 's/ $//'; }

if [[ -z $per_gpu ]]; then
  [[ -z $dry_run ]] || { echo "env $(place 0) $(quoted "$@")" && exit; }
  exec env "$(place 0)" "$@"
fi
if [[ -n $dry_run ]]; then
  for i in $(seq 0 $((gpus - 1))); do
    echo "env $(place "$i") $(quoted "$@") &"
  done
  echo wait
  exit
fi

declare -A running=()
trap 'kill -TERM "${!running[@]}" 2> /dev/null || true' TERM INT
for i in $(seq 0 $((gpus - 1))); do
  # shellcheck disable=SC2046  # the assignments hold no blanks: each is a word of its own
  env $(place "$i") "$@" &
  running[$!]=$i
done

# `wait -n` would forget a process that ended before it was called; a process's own `wait` does not.
code=0 deadline=''
while [[ ${#running[@]} -gt 0 ]]; do
  sleep 0.5 > /dev/null 2>&1 &
  wait $! || true # cut short by a signal
  for pid in "${!running[@]}"; do
    ! kill -0 "$pid" 2> /dev/null || continue
    unset "running[$pid]"
    one=0
    wait "$pid" || one=$?
    if [[ $one != 0 && $code == 0 ]]; then
      code=$one
      deadline=$((SECONDS + grace))
      kill -TERM "${!running[@]}" 2> /dev/null || true
    fi
  done
  if [[ -n $deadline && $SECONDS -ge $deadline ]]; then
    kill -KILL "${!running[@]}" 2> /dev/null || true
  fi
done
exit "$code"
