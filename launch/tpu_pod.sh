#!/usr/bin/env bash
# A TPU VM, a pod slice or several slices as one queued resource of Cloud TPU, and one command on every worker of it:
# launch/tpu_pod.sh create|status|install|run|delete NAME --zone ZONE [FLAGS] [-- gptjax train FILE --dir gs://...]
set -euo pipefail

fail() {
  echo "tpu_pod.sh: $1; see launch/tpu_pod.sh --help" >&2
  exit 2
}

help="launch/tpu_pod.sh VERB NAME --zone ZONE [FLAGS] [-- COMMAND...]
  create    ask for the TPUs, as --type says; they come when there are some
  status    print the state: ACTIVE when they are there, SUSPENDED when a spot TPU was taken back
  install   copy this checkout to every worker and install it there, with Python 3.12
  run       run COMMAND on every worker of every slice, in the checkout's folder
  delete    give the TPUs back, whatever runs on them
flags:
  --zone ZONE      the zone, for every verb
  --project NAME   the project (gcloud's)
  --type TYPE      accelerator type of one slice: v4-32, v5litepod-16, v5p-128, v6e-256
  --slices N       slices of that type, joined by the data centre's network (1)
  --runtime NAME   software of the VMs (what Cloud TPU names for the type)
  --spot           cheaper, and taken back at any time
  --dry-run        print the commands, to be pasted, and run none"

[[ ${1:-} != --help ]] || { echo "$help" && exit; }
verb=${1:-} name=${2:-}
[[ $verb =~ ^(create|status|install|run|delete)$ ]] || fail "'$verb' is not create, status, install, run or delete"
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || fail "name '$name' must be of lower-case letters, digits and dashes"
shift 2

zone='' project='' type='' slices=1 runtime='' spot='' dry_run=''
while [[ $# -gt 0 && $1 != -- ]]; do
  case $1 in
    --dry-run) dry_run=yes && shift && continue ;;
    --spot) spot=yes && shift && continue ;;
    --zone | --project | --type | --slices | --runtime) ;;
    *) fail "$1 is not a flag" ;;
  esac
  [[ $# -ge 2 && -n $2 && $2 != --* ]] || fail "$1 needs a value"
  declare "${1#--}=$2"
  shift 2
done
[[ ${1:-} != -- ]] || shift

[[ -n $zone ]] || fail "no --zone"
[[ $slices =~ ^[1-9][0-9]*$ ]] || fail "--slices $slices must be a whole number of at least 1"
[[ $verb == run || $# == 0 ]] || fail "$verb takes no command"
[[ $verb != run || $# -ge 1 ]] || fail "no command; put it after --"

quoted() { printf '%q ' "$@" | sed 's/ $/\n/'; }
say() { if [[ -n $dry_run ]]; then quoted "$@"; else "$@"; fi; }
queue() { say gcloud compute tpus queued-resources "$@" "--zone=$zone" ${project:+"--project=$project"}; }
everywhere() { queue ssh "$name" --node=all --worker=all "--command=$1"; }

create() {
  # https://cloud.google.com/tpu/docs/runtimes
  case $type in
    v4-*) : "${runtime:=tpu-ubuntu2204-base}" ;;
    v5litepod-*) : "${runtime:=v2-alpha-tpuv5-lite}" ;;
    v5p-*) : "${runtime:=v2-alpha-tpuv5}" ;;
    v6e-*) : "${runtime:=v2-alpha-tpuv6e}" ;;
    *) fail "--type '$type' is not v4-N, v5litepod-N, v5p-N or v6e-N; later TPUs: launch/jobset.py" ;;
  esac
  local nodes=("--node-id=$name")
  [[ $slices == 1 ]] || nodes=("--node-count=$slices" "--node-prefix=$name")
  queue create "$name" "${nodes[@]}" "--accelerator-type=$type" "--runtime-version=$runtime" ${spot:+--spot}
}

install() {
  local top archive
  top=$(cd "$(dirname "$0")/.." && pwd)
  archive=${TMPDIR:-/tmp}/$name.tar.gz
  say git -C "$top" archive --format=tar.gz "--output=$archive" HEAD
  queue scp "$archive" "$name:gptjax.tar.gz" --node=all --worker=all
  # The VMs' own Python may be older than 3.11.
  everywhere 'rm -rf gptjax && mkdir gptjax && tar -xzf gptjax.tar.gz -C gptjax && cd gptjax &&
    curl -LsSf https://astral.sh/uv/install.sh | sh && ~/.local/bin/uv venv -q --python 3.12 &&
    ~/.local/bin/uv pip install -q -c constraints.txt -e ".[tpu,gcs]"'
}

[[ -n $dry_run ]] || command -v gcloud > /dev/null || fail "no gcloud here; install it, or use --dry-run"
case $verb in
  create) create ;;
  status) queue describe "$name" "--format=value(state.state)" ;;
  install) install ;;
  run) everywhere "cd gptjax && export PATH=\$PWD/.venv/bin:\$PATH GPTJAX_COORDINATOR=auto && $(quoted "$@")" ;;
  delete) queue delete "$name" --force ;;
esac
