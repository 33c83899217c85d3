#!/usr/bin/env bash
# A Slurm cluster of one's own on this machine, without systemd: munge, a controller, and nodes n1, n2,
# ... that are daemons of their own. As root.
#
#   slurm.sh start FOLDER NODES [FIRST_PORT]    configuration, state and logs go to FOLDER, slurm.conf
#                                               among them; ends with 77 where it cannot be had
#   slurm.sh stop FOLDER                        ends jobs and daemons
set -euo pipefail
folder=$2
export SLURM_CONF=$folder/slurm.conf

pid_files() { ls "$folder"/*.pid 2>/dev/null || true; }

stop() {
  scancel --quiet --user=root 2>/dev/null || true
  for _ in {1..50}; do
    [ -n "$(squeue --noheader 2>/dev/null)" ] || break
    sleep 0.1
  done
  local file pid
  for file in $(pid_files); do
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null || true
    for _ in {1..50}; do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
    rm -f "$file"
  done
}

# Debian's munged refuses to share a folder that others may write.
start_munge() {
  mkdir -m 755 "$folder/munge"
  head -c 128 /dev/urandom >"$folder/munge/key"
  chmod 600 "$folder/munge/key"
  chown -R munge: "$folder/munge"
  install -o munge -m 644 /dev/null "$folder/munged.pid"
  setpriv --reuid=munge --regid=munge --clear-groups munged --force \
    --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
}

# Delays are short, so that a test need not wait: a job that was put back starts after cred_expire + 1 s.
write_configuration() {
  local nodes=$1 port=$2 host
  host=$(hostname -s)
  cat >"$SLURM_CONF" <<CONFIGURATION
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,sched_min_interval=10000
ReturnToService=1
JobRequeue=1
KillWait=5
MinJobAge=300
InactiveLimit=0
SlurmctldTimeout=10
SlurmdTimeout=10
TmpFS=$folder/tmp/%n
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.%n.log
$(for ((i = 1; i <= nodes; i++)); do
    echo "NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + i)) Sockets=2 CoresPerSocket=2"
  done)
PartitionName=main Nodes=n[1-$nodes] Default=YES MaxTime=60 State=UP
CONFIGURATION
  echo "CgroupPlugin=cgroup/v1" >"$folder/cgroup.conf"
}

start() {
  local nodes=$1 port=${2:-16817} i tool
  for tool in slurmctld slurmd munged srun; do
    if [ "$(id -u)" -ne 0 ] || ! command -v $tool >/dev/null; then
      echo "no cluster: that needs root, and Slurm and munge installed" >&2
      exit 77
    fi
  done
  mkdir -p "$folder"/{state,spool}
  start_munge
  write_configuration "$nodes" "$port"
  slurmctld -c
  for ((i = 1; i <= nodes; i++)); do
    mkdir -p "$folder/tmp/n$i"
    slurmd -N "n$i"
  done
  for _ in {1..300}; do
    [ "$(sinfo --noheader --states=idle --format=%D 2>/dev/null)" = "$nodes" ] && return
    sleep 0.1
  done
  echo "the nodes are not ready:" >&2
  sinfo --Node --long >&2
  tail -n 5 "$folder"/*.log >&2
  return 1
}

case $1 in
  start) start "${@:3}" ;;
  stop) stop ;;
esac
