# shellcheck shell=bash
# What the batch scripts of this folder share; they source it. Settings of your cluster that hold for
# all of them (modules, network interfaces) belong here: README.md says which. `asked` comes from the
# scripts: a request to stop, USR1, that is 'unsent' to the workers.

fail() {
  echo "${SLURM_JOB_NAME:-lockstep}: $*" >&2
  exit 2
}

for name in SLURM_JOB_ID SLURM_JOB_NUM_NODES SLURM_CPUS_ON_NODE SLURMD_NODENAME; do
  [ -n "${!name:-}" ] || fail "$name is not set: submit this script with sbatch"
done
command -v lockstep >/dev/null ||
  fail "lockstep is not on the job's PATH: extend PATH before sbatch, or in ${BASH_SOURCE[0]}"

# The job's own number: of an array, SLURM_JOB_ID is sometimes the whole one's.
job=$SLURM_JOB_ID
[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

# Sockets that the CPUs granted on this node fill.
sockets() {
  local node total
  node=$(scontrol show node --oneliner "$SLURMD_NODENAME")
  [[ $node =~ \ CPUTot=([1-9][0-9]*) ]] && total=${BASH_REMATCH[1]}
  [[ -n $total && $node =~ \ Sockets=([1-9][0-9]*) ]] ||
    fail "scontrol does not tell the sockets of $SLURMD_NODENAME: say --ntasks-per-node, or submit it again"
  echo $(((SLURM_CPUS_ON_NODE * BASH_REMATCH[1] + total - 1) / total))
}

# Sets `launcher`, the words that start a job's workers: as many as sbatch was told (--ntasks,
# --ntasks-per-node), else one a GPU, else one a socket; each with its share of the CPUs.
choose_launcher() {
  local name each cpus=${SLURM_CPUS_PER_TASK:-}
  for name in SLURM_JOB_NUM_NODES SLURM_CPUS_ON_NODE SLURM_NTASKS SLURM_CPUS_PER_TASK SLURM_GPUS_ON_NODE; do
    [[ ${!name:-1} =~ ^[1-9][0-9]*$ ]] || [ "$name=${!name}" = SLURM_GPUS_ON_NODE=0 ] ||
      fail "$name is '${!name}', and should be a number above 0"
  done
  each=${SLURM_GPUS_ON_NODE#0}
  if [ -n "${SLURM_NTASKS:-}" ]; then
    each=$(((SLURM_NTASKS + SLURM_JOB_NUM_NODES - 1) / SLURM_JOB_NUM_NODES))
  fi
  [ -n "$each" ] || each=$(sockets) || exit 2
  : "${cpus:=$((SLURM_CPUS_ON_NODE / each > 0 ? SLURM_CPUS_ON_NODE / each : 1))}"
  local workers=${SLURM_NTASKS:-$((each * SLURM_JOB_NUM_NODES))}
  if srun --mpi=list 2>&1 | grep -q pmix; then
    launcher=(srun --mpi=pmix --wait=60 --ntasks="$workers" --ntasks-per-node="$each"
      --cpus-per-task="$cpus")
  else
    launcher=(mpirun -np "$workers" --map-by "ppr:$each:node" --bind-to none)
  fi
}

# The value of an option among arguments: value_of --run "$@"
value_of() {
  local name=$1 value=
  while shift && [ $# -gt 0 ]; do
    case $1 in
      "$name") value=${2:-} ;;
      "$name"=*) value=${1#*=} ;;
    esac
  done
  echo "$value"
}

# Shows the last step of the run as the job's comment (squeue -o '%i %j %k').
show_step() {
  local step
  step=$(tail -n 1 "$run/metrics.jsonl" 2>/dev/null |
    sed -nE 's/.*"step":([0-9]+),"loss":([0-9.]+).*/step \1, loss \2/p')
  [ -z "$step" ] || scontrol update jobid="$job" comment="$step"
}
show_progress() {
  until [ -s "$run/metrics.jsonl" ]; do sleep 1; done
  while true; do
    show_step
    sleep 30
  done
}

# Ends the job with a command's exit code. Code 75, stopped on request, puts the job back into the
# queue, where it goes on; unless it was scancel that stopped it. A launcher that was asked to stop
# may end with a code of its own.
finish() {
  local code=$1
  if [ -n "$asked" ]; then
    case $code in 0 | 2 | 3 | 4) ;; *) code=75 ;; esac
  fi
  if [ "$code" -eq 75 ] && scontrol show job "$job" | grep -q 'JobState=RUNNING'; then
    scontrol requeue "$job"
  fi
  exit "$code"
}

# What changes once the workers have started: files that the first of them writes.
signs() { stat -c '%i %y' "$run"/{lease,status}.json "$output".partial{,.lease} 2>/dev/null; }

# Hands a request to stop on to the workers. In their start-up the launcher would lose it, or they
# would end by it: then it waits.
hand_on() {
  [ "$asked" = unsent ] && [ "$(signs)" != "$before" ] || return
  asked=sent
  kill -USR1 "$workers" 2>/dev/null
}

# Runs `lockstep ARGUMENTS...` on all workers, and ends the job. USR1, which Slurm sends before the
# time limit, is handed on: the workers then save and exit with 75.
run_workers() {
  choose_launcher
  echo "${SLURM_JOB_NAME:-lockstep}: ${launcher[*]} lockstep $*" >&2
  run=$(value_of --run "$@") output=$(value_of --output "$@")
  before=$(signs)
  [ -z "$asked" ] || finish 75
  "${launcher[@]}" lockstep "$@" &
  workers=$!
  trap 'asked=unsent; hand_on' USR1
  trap : TERM  # at the time limit; the workers have it too, and this shell must outlive them
  while kill -0 $workers 2>/dev/null; do  # a trap ends a wait
    hand_on
    sleep 1 &
    wait -n $workers $!
  done
  wait $workers
  finish $?
}

# run_workers for a training, with its progress shown.
run_training() {
  run=$(value_of --run "$@")
  [ -n "$run" ] || fail "--run is missing: name the run folder"
  show_progress &
  progress=$!
  trap 'kill $progress 2>/dev/null; show_step' EXIT
  run_workers train "$@"
}
