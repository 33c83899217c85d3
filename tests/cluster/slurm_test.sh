#!/usr/bin/env bash
# The batch scripts of launch/slurm on a Slurm cluster of this test's own, with real jobs: preempted,
# out of time, in arrays, on a node that fails. In the end nothing of it may be left.
#
#   slurm_test.sh PROGRAM       ends with 77 where there is no Slurm to be had
set -euo pipefail
program=$(realpath "$1")
source=$(realpath "$(dirname "$0")/../..")
cluster=$source/tests/cluster/slurm.sh
scripts=$source/launch/slurm

work=$(mktemp -d "${TMPDIR:-/tmp}/lockstep-slurm-XXXXXX")
chmod 755 "$work"  # munge is another user
remove() {
  local left
  "$cluster" stop "$work/slurm"
  left=$(pgrep -af "$work" || true)$(grep -F "$work" /proc/mounts || true)
  rm -rf "$work"
  [ -z "$left" ] || { echo "left behind: $left" >&2; exit 1; }
}
trap 'code=$?; remove; exit $code' EXIT
trap 'exit 1' INT TERM

"$cluster" start "$work/slurm" 6 $((12000 + $$ % 2000 * 10))  # ports of its own
export SLURM_CONF=$work/slurm/slurm.conf PATH=${program%/*}:$PATH TMPDIR=$work/tmp
# Nodes that are one machine in truth must not share memory as one.
export OMPI_MCA_btl=self,tcp OMPI_MCA_btl_tcp_if_include=lo
mkdir "$TMPDIR"
cd "$work"
for i in {1..400}; do
  echo "The quick brown fox jumps over the lazy dog number $((i * 7919 % 1000))."
done >text.txt
lockstep prepare --input text.txt --output data --tokenizer bytes >prepare.log 2>&1
model=(--layers 2 --heads 2 --hidden-size 48 --context-length 64 --batch-size 8 --virtual-workers 4
  --threads 1 --precision fp32 --evaluate-every 0 --log-every 500)
steps=3000  # some seconds: a run must not end before it was preempted five times

fail() {
  echo "FAILED: $*" >&2
  exit 1
}
field() { scontrol show job "$1" --oneliner | sed -nE "s/.* $2=([^ ]*).*/\1/p"; }
submit() { sbatch --parsable "$@"; }

# What a job's state is once it has ended.
ended() {
  local state
  for _ in {1..6000}; do
    state=$(field "$1" JobState)
    case $state in PENDING | RUNNING | COMPLETING | CONFIGURING | REQUEUED | NODE_FAIL) ;; *) break ;; esac
    sleep 0.2
  done
  echo "$state, $(field "$1" ExitCode)"
}
completes() {
  local state
  state=$(ended "$1")
  [ "$state" = "COMPLETED, 0:0" ] || fail "job $1 is $state: $(cat "$2")"
}
same_bits() { lockstep checkpoint diff "$1" "$2" >&2 || fail "$1 and $2 differ"; }
last_step() { tail -n 1 "$1/metrics.jsonl" 2>/dev/null | sed -E 's/.*"step":([0-9]+).*/\1/'; }
# Waits until a job trains, past a step.
trains() {
  for _ in {1..6000}; do
    [ "$(last_step "$2" || true)" -gt "$3" ] 2>/dev/null && return
    [[ ! $(field "$1" JobState) =~ FAILED|COMPLETED ]] || break
    sleep 0.05
  done
  fail "job $1 does not train: $(field "$1" JobState), $(field "$1" Reason): $(cat "$2.out")"
}

preempted() {
  local id step=0
  id=$(submit -o preempted.out "$scripts/train.sbatch" --data data --run preempted "${model[@]}" --steps $steps)
  for _ in {1..5}; do
    trains "$id" preempted "$step"
    scancel --signal=USR1 --batch "$id"
    for _ in {1..600}; do
      [ "$(field "$id" JobState)" != RUNNING ] && break
      sleep 0.1
    done
    step=$(last_step preempted)
  done
  trains "$id" preempted "$step"
  scontrol show job "$id" | grep -qE 'Comment=step [0-9]+, loss [0-9.]+' || fail "$(scontrol show job "$id")"
  completes "$id" preempted.out
  [ "$(field "$id" Restarts)" = 5 ] || fail "$(field "$id" Restarts) restarts"
  same_bits preempted undisturbed
}

# Asked to stop before its workers can be told: put back, and not ended.
stopped_at_once() {
  local id moment
  for moment in 0 0.1 0.3; do
    id=$(submit -o "at_once$moment.out" "$scripts/train.sbatch" --data data --run "at_once$moment" "${model[@]}" \
      --steps 20000)
    for _ in {1..6000}; do
      grep -q "^lockstep-train: " "at_once$moment.out" 2>/dev/null && break
      sleep 0.01
    done
    sleep $moment
    scancel --signal=USR1 --batch "$id"
    for _ in {1..300}; do
      [ "$(field "$id" JobState)" != RUNNING ] && break
      sleep 0.1
    done
    [ "$(field "$id" Restarts)" = 1 ] ||
      fail "after $moment s: $(scontrol show job "$id") $(cat "at_once$moment.out")"
    scancel "$id"
  done
}

# Slurm says nothing before the limit: URG is what nobody listens to.
out_of_time() {
  local id
  id=$(submit -o time.out --time=1 --signal=B:URG@1 "$scripts/train.sbatch" --data data --run time \
    "${model[@]}" --steps 1000000)
  trains "$id" time 0
  while [ "$(field "$id" Restarts)" = 0 ] && [ "$(field "$id" JobState)" = RUNNING ]; do sleep 0.5; done
  [ "$(field "$id" Restarts)" = 1 ] || fail "$(ended "$id"): $(cat time.out)"
  scancel "$id"
  grep -q "saved time/checkpoints" time.out || fail "nothing was saved: $(cat time.out)"
}

node_fails() {
  local id node
  id=$(submit -o node.out --nodes=2 "$scripts/train.sbatch" --data data --run node "${model[@]}" \
    --steps $steps)
  trains "$id" node 500
  node=$(scontrol show hostnames "$(field "$id" NodeList)" | tail -n 1)
  scontrol update nodename="$node" state=down reason=test
  completes "$id" node.out
  scontrol update nodename="$node" state=resume
  [ "$(field "$id" Restarts)" = 1 ] || fail "it was not started again"
  [[ " $(scontrol show hostnames "$(field "$id" NodeList)" | tr '\n' ' ')" != *" $node "* ]] ||
    fail "it ran on $node again"
  same_bits node undisturbed
}

sweep() {
  local id task restarts
  printf '%s\r\n' "--seed 0" "--seed 1 --learning-rate 1e-3" "" >sweep.txt
  id=$(submit -o sweep-%a.out --array=1-4 "$scripts/sweep.sbatch" sweep.txt runs --data data "${model[@]}" \
    --steps 2000)
  trains "${id}_2" runs/2 0
  scancel --signal=USR1 --batch "${id}_2"  # puts this task back, not the whole array
  for task in 1 2; do completes "${id}_$task" "sweep-$task.out"; done
  restarts="$(field "${id}_1" Restarts) $(field "${id}_2" Restarts)"
  [ "$restarts" = "0 1" ] || fail "restarts of tasks 1 and 2: $restarts: $(cat sweep-[12].out)"
  grep -q "^learning-rate = 0.001 " runs/2/run.cfg || fail "line 2 was not taken: $(cat runs/2/run.cfg)"
  for task in 3 4; do
    [ "$(ended "${id}_$task")" = "FAILED, 2:0" ] || fail "task $task: $(ended "${id}_$task")"
  done
  grep -q "line 3 of sweep.txt is empty" sweep-3.out || fail "$(cat sweep-3.out)"
  grep -q "sweep.txt has no line 4: choose --array=1-3" sweep-4.out || fail "$(cat sweep-4.out)"

  id=$(submit -o evaluate.out "$scripts/evaluate.sbatch" --checkpoint runs/1 --data data --json)
  completes "$id" evaluate.out
  grep -q '"bits_per_byte":' evaluate.out || fail "$(cat evaluate.out)"
  id=$(submit -o generate.out "$scripts/generate.sbatch" --checkpoint runs/1 --prompt "The quick" \
    --max-tokens 8 --json)
  completes "$id" generate.out
  grep -q '"finish_reason":"length"' generate.out || fail "$(cat generate.out)"
}

# Two workers write into one file what one process writes: the same bytes.
writes() {
  local id
  for n in {1..12}; do echo "{\"prompt\": \"The quick $n\", \"max_tokens\": $((4 * n))}"; done >prompts.jsonl
  lockstep generate --checkpoint undisturbed --prompt-file prompts.jsonl --output alone.jsonl 2>alone.log ||
    fail "$(cat alone.log)"
  id=$(submit -o texts.out --ntasks=2 "$scripts/generate.sbatch" --checkpoint undisturbed \
    --prompt-file prompts.jsonl --output texts.jsonl)
  completes "$id" texts.out
  grep -qE -- '--ntasks=2 |-np 2 ' texts.out || fail "not two workers: $(cat texts.out)"
  [ "$(wc -l <texts.jsonl)" = 12 ] || fail "$(wc -l <texts.jsonl) texts"
  cmp alone.jsonl texts.jsonl >&2 || fail "alone.jsonl and texts.jsonl differ"
  [ ! -e texts.jsonl.partial ] || fail "a journal is left"
}

# A message, exit code 2, and no second try.
refused() {
  local id
  id=$(submit -o "$1.out" "${@:3}")
  [ "$(ended "$id")" = "FAILED, 2:0" ] || fail "$1: $(ended "$id") $(cat "$1.out")"
  grep -q -- "$2" "$1.out" || fail "$1: $(cat "$1.out")"
}
bad_input() {
  refused no_run "--run is missing" "$scripts/train.sbatch" --data data
  refused three_workers "cannot be dealt to 3 workers: start it with 1, 2, 4" --ntasks=3 \
    "$scripts/train.sbatch" --data data --run three "${model[@]}"
  refused no_program "lockstep is not on the job's PATH" --export=PATH=/usr/bin:/bin,SLURM_CONF \
    "$scripts/train.sbatch" --data data --run none
  # A copy under another name; no controller that answers; odd values.
  cp -r "$scripts" copy
  mv copy/train.sbatch copy/job.sh
  refused renamed "--run is missing" copy/job.sh --data x.sbatch/y
  rm copy/common.sh
  refused alone "common.sh must lie beside the script that was submitted, in $work/copy" copy/job.sh
  mkdir busy
  printf '%s\n' '#!/bin/sh' '[ "$2" != node ] && exec '"$(command -v scontrol)"' "$@"' 'exit 1' >busy/scontrol
  chmod +x busy/scontrol
  PATH=$work/busy:$PATH refused busy "scontrol does not tell the sockets" \
    "$scripts/train.sbatch" --data data --run none
  ! grep -q "error token" busy.out || fail "$(cat busy.out)"
  local gpus
  gpus=$(env SLURM_JOB_ID=1 SLURM_JOB_NUM_NODES=1 SLURM_CPUS_ON_NODE=2 SLURMD_NODENAME=n1 \
    SLURM_GPUS_ON_NODE=gpu:2 "$scripts/train.sbatch" --data data --run none 2>&1) && fail "gpu:2 was taken"
  [[ $gpus == *"SLURM_GPUS_ON_NODE is 'gpu:2'"* ]] || fail "$gpus"
  local code=0
  "$scripts/train.sbatch" --data data --run none 2>no_slurm.out || code=$?
  [ $code = 2 ] || fail "outside of Slurm: $code"
  grep -q "SLURM_JOB_ID is not set: submit this script with sbatch" no_slurm.out || fail "$(cat no_slurm.out)"
}

# Where Slurm has no PMIx, mpirun starts the workers.
by_mpirun() {
  local id
  mkdir no_pmix
  printf '%s\n' '#!/bin/sh' '[ "$1" = --mpi=list ] && exec echo none' "exec $(command -v srun) \"\$@\"" >no_pmix/srun
  chmod +x no_pmix/srun
  id=$(PATH=$work/no_pmix:$PATH OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
    submit -o mpirun.out "$scripts/train.sbatch" --data data --run by_mpirun "${model[@]}" --steps $steps)
  trains "$id" by_mpirun 0
  scancel --signal=USR1 --batch "$id"
  completes "$id" mpirun.out
  grep -q "^lockstep-train: mpirun -np 2 " mpirun.out || fail "$(cat mpirun.out)"
  [ "$(field "$id" Restarts)" = 1 ] || fail "it was not put back: $(cat mpirun.out)"
  same_bits by_mpirun undisturbed
}

# A job that is cancelled saves and stays away.
cancelled() {
  local id
  id=$(submit -o cancelled.out "$scripts/train.sbatch" --data data --run cancelled "${model[@]}" --steps 100000)
  trains "$id" cancelled 0
  scancel "$id"
  [ "$(ended "$id")" = "CANCELLED, 75:0" ] || fail "$(ended "$id")"
  grep -q "saved cancelled/checkpoints" cancelled.out || fail "$(cat cancelled.out)"
}

mpirun -np 2 --oversubscribe --bind-to none --allow-run-as-root lockstep train --data data \
  --run undisturbed "${model[@]}" --steps $steps 2>undisturbed.log || fail "$(cat undisturbed.log)"
failed=()
declare -A cases
for name in preempted stopped_at_once out_of_time node_fails sweep writes bad_input by_mpirun cancelled; do
  $name >"$name.log" 2>&1 &
  cases[$name]=$!
done
for name in "${!cases[@]}"; do
  wait "${cases[$name]}" || failed+=("$name")
  sed "s/^/$name: /" "$name.log"
done
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
echo "jobs end as they should"
