#!/bin/bash
# Start SLURM on this machine alone, as root and without systemd: `tests/slurm_up.sh DIR [CPUS]`. All it writes lies in
# DIR (outside of it, only a line of /etc/hosts if the machine does not know its own name). Run again, it changes
# nothing. Then `export SLURM_CONF=DIR/slurm.conf`; `kill $(cat DIR/*.pid)` ends it. Debian: slurm-wlm and munge.
set -euo pipefail

directory=$(realpath -m "$1")
host=$(hostname -s)
cpus=${2:-$(nproc)}
memory=$(awk '/^MemTotal/ { print int($2 / 1024) - 500 }' /proc/meminfo)
export SLURM_CONF=$directory/slurm.conf

idle() { timeout 5 sinfo --noheader --format=%T 2>"$directory/sinfo.err" | grep -q -E '^(idle|mixed|allocated)'; }

mkdir -p "$directory"/{state,spool}
if [ -f "$SLURM_CONF" ] && idle; then exit 0; fi
getent hosts "$host" >/dev/null || echo "127.0.0.1 $host" >>/etc/hosts

read -r port_controller port_node < <(python3 - <<'PYTHON'
import socket
sockets = [socket.create_server(("", 0)) for _ in range(2)]
print(*(s.getsockname()[1] for s in sockets))
PYTHON
)

cat >"$SLURM_CONF" <<CONF
ClusterName=gptjax
SlurmctldHost=$host
SlurmctldPort=$port_controller
SlurmdPort=$port_node
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
# a requeued job waits until its old credential has expired: 120 s unless told, 5 at least
AuthInfo=socket=$directory/munge.socket,cred_expire=8
StateSaveLocation=$directory/state
SlurmdSpoolDir=$directory/spool
SlurmctldPidFile=$directory/slurmctld.pid
SlurmdPidFile=$directory/slurmd.pid
SlurmctldLogFile=$directory/slurmctld.log
SlurmdLogFile=$directory/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=1
# more CPUs may be asked for here than the machine has
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=20
NodeName=$host CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF

[ -f "$directory/munge.key" ] || (umask 077 && head -c 1024 /dev/urandom >"$directory/munge.key")
munge --socket="$directory/munge.socket" --no-input --output=/dev/null 2>/dev/null ||
    munged --force --socket="$directory/munge.socket" --key-file="$directory/munge.key" \
        --pid-file="$directory/munged.pid" --log-file="$directory/munged.log" --seed-file="$directory/munged.seed"
slurmctld
slurmd
for _ in $(seq 60); do
    if idle; then exit 0; fi
    sleep 0.5
done
echo "SLURM did not start within 30 s; its logs:" >&2
tail -n 5 "$directory"/*.log "$directory/sinfo.err" >&2
exit 1
