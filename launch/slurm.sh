#!/usr/bin/env bash
# Submit one run over several SLURM nodes: launch/slurm.sh [FLAGS] -- gptjax train FILE --dir DIR
# The batch script goes to sbatch on its standard input; --dry-run prints it. Partition, account and the like are the
# variables sbatch reads: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_QOS, SBATCH_EXPORT.
set -euo pipefail

fail() {
  echo "slurm.sh: $1; see launch/slurm.sh --help" >&2
  exit 2
}

whole() { [[ $2 =~ ^[0-9]+$ && $2 -ge $3 ]] || fail "$1 $2 must be a whole number of at least $3"; }

help="launch/slurm.sh [FLAGS] -- COMMAND...
  --nodes N      nodes (1)
  --gpus N       GPUs of a node (0: CPU)
  --per-gpu      one process for each GPU (default: one for each node, with all its GPUs)
  --processes N  processes of a node without GPUs (1)
  --cpus N       CPU cores of a process (SLURM's default)
  --time LIMIT   limit of one stretch, as sbatch takes it (24:00:00); the run is requeued until it is done
  --grace N      seconds before the limit at which the run is told to save (300)
  --name NAME    the job's name (gptjax)
  --dry-run      print the batch script and submit nothing"

nodes=1 gpus=0 per_gpu='' processes=1 cpus='' time=24:00:00 grace=300 name=gptjax dry_run=''
while [[ $# -gt 0 && $1 != -- ]]; do
  case $1 in
    --help) echo "$help" && exit ;;
    --dry-run) dry_run=yes && shift && continue ;;
    --per-gpu) per_gpu=yes && shift && continue ;;
    --nodes | --gpus | --processes | --cpus | --time | --grace | --name) ;;
    *) fail "$1 is not a flag" ;;
  esac
  [[ $# -ge 2 && $2 != -- ]] || fail "$1 needs a value"
  declare "${1#--}=$2"
  shift 2
done
[[ $# -ge 2 ]] || fail "no command; put it after --"
shift

whole --nodes "$nodes" 1
whole --gpus "$gpus" 0
whole --processes "$processes" 1
[[ -z $cpus ]] || whole --cpus "$cpus" 1
whole --grace "$grace" 1
[[ $time =~ ^[0-9][0-9:-]*$ ]] || fail "--time $time is not a limit; write minutes, H:M:S or DAYS-HOURS"
[[ $name =~ ^[A-Za-z0-9._-]+$ ]] || fail "--name '$name' must be of letters, digits, dots, dashes and underscores"
[[ -z $per_gpu || $gpus -ge 1 ]] || fail "--per-gpu needs --gpus"
[[ $processes == 1 || $gpus == 0 ]] || fail "--processes is for nodes without GPUs; use --per-gpu"
[[ -z $per_gpu ]] || processes=$gpus

batch() {
  echo "#!/bin/bash"
  echo "#SBATCH --job-name=$name"
  echo "#SBATCH --nodes=$nodes"
  echo "#SBATCH --ntasks-per-node=$processes"
  [[ -z $cpus ]] || echo "#SBATCH --cpus-per-task=$cpus"
  [[ $gpus == 0 ]] || echo "#SBATCH --gpus-per-node=$gpus"
  echo "#SBATCH --time=$time"
  echo "#SBATCH --signal=TERM@$grace"
  echo "#SBATCH --requeue"
  echo "#SBATCH --open-mode=append"
  echo "#SBATCH --output=%x-%j.out"
  echo
  # From 22.05 on, srun no longer takes --cpus-per-task from the batch job.
  echo "srun --kill-on-bad-exit=1${cpus:+ --cpus-per-task=$cpus} $(printf '%q ' "$@" | sed 's/ $//')"
  cat << 'END'
code=$?
if [ "$code" -eq 75 ]; then  # everything is saved: the same command goes on from there
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
END
}

if [[ -n $dry_run ]]; then
  batch "$@"
else
  command -v sbatch > /dev/null || fail "no sbatch here; use a login node of the cluster, or --dry-run"
  batch "$@" | sbatch
fi
