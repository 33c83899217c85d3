#!/usr/bin/env bash
# Training over two hosts with TCP between them (network namespaces of this machine), and what
# launch/resilient.sh does when a worker is killed, the link is cut, or the job must not start again.
#
#   hosts_test.sh PROGRAM       ends with 77 where network namespaces cannot be had
set -euo pipefail
program=$(realpath "$1")
source=$(realpath "$(dirname "$0")/../..")
hosts=$source/tests/cluster/hosts.sh
name=lockstep$$-

work=$(mktemp -d "${TMPDIR:-/tmp}/lockstep-hosts-XXXXXX")
remove() {
  local left
  "$hosts" down "$name"
  left=$(pgrep -af "$work" || true)$(ip netns list | grep "$name" || true)
  rm -rf "$work"
  [ -z "$left" ] || { echo "left behind: $left" >&2; exit 1; }
}
trap 'code=$?; remove; exit $code' EXIT
trap 'exit 1' INT TERM

"$hosts" up "$name"
mkdir "$work/tmp"
export LOCKSTEP_TEST_HOSTS=$name TMPDIR=$work/tmp
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_MCA_plm_rsh_agent="$hosts shell" OMPI_MCA_btl=self,vader,tcp
export OMPI_MCA_oob_tcp_if_include=10.77.0.0/24 OMPI_MCA_btl_tcp_if_include=10.77.0.0/24
cd "$work"
for i in {1..400}; do
  echo "The quick brown fox jumps over the lazy dog number $((i * 7919 % 1000))."
done >text.txt
"$program" prepare --input text.txt --output data --tokenizer bytes >prepare.log 2>&1
printf '%s\n' "# two hosts" "10.77.0.1 slots=1" "10.77.0.2 slots=1" >hostfile

fail() {
  echo "FAILED: $*" >&2
  exit 1
}
# A command on the first host, not longer than it may take.
on_first_host() { timeout -k 5 "${most:-100}" "$hosts" shell 10.77.0.1 "cd $work && $*"; }
train() {
  echo "$program train --data data --run $1 --layers 2 --heads 2 --hidden-size 48 --context-length 64" \
    "--batch-size 8 --virtual-workers 4 --threads 1 --precision fp32 --steps 400 --checkpoint-every 50" \
    "--evaluate-every 0 --collective-timeout 3 ${*:2}"
}
resilient="$source/launch/resilient.sh --hang 120 mpirun"
same_bits() { "$program" checkpoint diff "$1" undisturbed >diff.log || fail "$1: $(cat diff.log)"; }
says() { grep -qE "$2" "$1.log" || fail "$1.log says no '$2': $(cat "$1.log")"; }
# Runs a command to its end; it must end with this code.
ends_with() {
  local code=0
  on_first_host "${@:3}" >"$2.log" 2>&1 || code=$?
  [ $code = "$1" ] || fail "$2 ended with $code: $(cat "$2.log")"
}
# Starts a training, with another program before it; waits until it has its first checkpoint.
begin() {
  on_first_host "$resilient -np 2 --hostfile hostfile env STARTED_BY=test $(train "$1")" >"$1.log" 2>&1 &
  job=$!
  for _ in {1..600}; do
    compgen -G "$1/checkpoints/step-*" >/dev/null && return
    kill -0 $job 2>/dev/null || break
    sleep 0.05
  done
  fail "$1 does not train: $(cat "$1.log")"
}
finish() { wait $job || fail "$1 ended with $?: $(cat "$1.log")"; }

ends_with 0 undisturbed "mpirun -np 2 --host 10.77.0.1:2 $(train undisturbed)"
ends_with 0 over_tcp "mpirun -np 2 --hostfile hostfile $(train over_tcp)"
same_bits over_tcp

# The first start hangs, the second does not: begun here, as it takes its time.
printf '%s\n' '#!/bin/sh' 'mkdir hung 2>/dev/null && exec sleep 1000' 'exit 0' >hangs && chmod +x hangs
most=200 ends_with 0 hangs "$resilient -np 1 ./hangs train --run hangs" &
hanging=$!

# A worker is killed, of the other host: all start again, on both.
begin killed
pkill -KILL -o --ns "$(ip netns pids "${name}2" | head -n 1)" --nslist net -f "$program train"
finish killed
says killed "starts again in 1 s: -np 2 on 10.77.0.1 10.77.0.2"
same_bits killed

# mpirun is killed: the worker beside it must not hold the run.
begin alone
pkill -KILL -f "^mpirun .*--run alone "
finish alone
says alone "starts again in 1 s: -np 2 on 10.77.0.1 10.77.0.2"
same_bits alone

# Stopped on request, it is not started again.
begin stopped
pkill -USR1 -f "^bash [^ ]*/launch/resilient.sh --hang 120 mpirun .*--run stopped"
code=0
wait $job || code=$?
[ $code = 75 ] || fail "stopped ended with $code: $(cat stopped.log)"

# Asked before its workers can be told: mpirun would lose it.
early="$program train --data data --run early --layers 2 --heads 2 --hidden-size 48 --batch-size 8 --threads 1"
on_first_host "$resilient -np 2 --hostfile hostfile $early --virtual-workers 4 --steps 100000" >early.log 2>&1 &
job=$!
until pgrep -f "^mpirun .*--run early " >/dev/null; do sleep 0.01; done
pkill -TERM -f "^bash [^ ]*/launch/resilient.sh .*--run early "
code=0
wait $job || code=$?
[ $code = 75 ] || fail "early ended with $code: $(cat early.log)"
says early "saved early/checkpoints"

# Ctrl-C, and the end of the terminal. A step takes longer than mpirun gives workers after Ctrl-C.
for how in press close; do
  ends_with 75 $how "$source/tests/cluster/interrupt.py $how $how/status.json $resilient -np 2" \
    "--hostfile hostfile $program train --data data --run $how --layers 6 --heads 8 --hidden-size 512" \
    "--context-length 64 --batch-size 64 --virtual-workers 4 --threads 1 --precision fp32 --steps 400"
  compgen -G "$how/checkpoints/step-*" >/dev/null || fail "nothing was saved: $(cat $how.log)"
done

# What is wrong in the same way on every start.
ends_with 2 usage "$resilient -np 3 --host 10.77.0.1:3 $(train usage)"
ends_with 3 diverged "$resilient -np 1 $(train diverged --learning-rate 1e30 --clip-norm 0)"
for log in usage diverged; do
  ! grep -q "starts again" $log.log || fail "$log was started again: $(cat $log.log)"
done
printf '%s\n' '#!/bin/sh' 'date +%N >dying/status.json' 'kill -KILL $$' >dies && chmod +x dies
mkdir dying
ends_with 4 dies "$resilient -np 2 --hostfile hostfile ./dies train --run dying"
says dies "ended at the same step three times"
[ "$(grep -c "starts again" dies.log)" = 2 ] || fail "$(cat dies.log)"
# What cannot work is not started again.
ends_with 4 never "$resilient -np 2 --hostfile hostfile ./no-such-program train --run never"
says never "it ended before it trained in never"
ends_with 2 launcher "${resilient%mpirun} no-mpirun -np 2 lockstep train --run never"
says launcher "there is no program 'no-mpirun'"
ends_with 2 evaluates "$resilient -np 2 lockstep evaluate --checkpoint undisturbed"
says evaluates "only train can be started again"
ends_with 2 no_host "$resilient -np 2 --host 10.77.0.1:two $(train never)"
says no_host "'10.77.0.1:two' is no host"
printf '%s\n' "10.77.0.1 max_slots=4 slots = 1" "10.77.0.2 max_slots=4" >few
ends_with 2 few "$resilient -np 2 --hostfile few $(train never)"
says few "say how many workers 10.77.0.2 may have: 10.77.0.2 slots=N"
! grep -q "starts again" never.log launcher.log evaluates.log || fail "started again"
ends_with 2 hasty "${resilient/ 120/=119} -np 1 $(train hasty)"
says hasty "119 is too short"

# Another build on the second host.
objcopy --remove-section=.note.gnu.build-id "$program" other
printf '%s\n' '#!/bin/sh' "[ \$(hostname) = ${name}1 ] && exec $program \"\$@\"" 'exec ./other "$@"' >either
chmod +x either
command=$(train differ)
ends_with 4 differ "mpirun -np 2 --hostfile hostfile ./either ${command#* }"
says differ "the workers differ, and so would their bits: lockstep is .* on ${name}2"

# doctor marks a slow link.
doctor="mpirun -np 2 --hostfile hostfile $program doctor --data data --run undisturbed"
ends_with 0 sound "$doctor"
! grep -q "the link between" sound.log || fail "$(cat sound.log)"
"$hosts" slow "$name"
ends_with 0 slow "$doctor"
"$hosts" fast "$name"
says slow "${name}1 +${name}2 .* slow$"
says slow "the link between worker 0 on ${name}1 and worker 1 on ${name}2 is slow"

# The link is cut: the deadline passes, or on a busy machine mpirun notices first, and one host goes on.
begin cut
"$hosts" cut "$name"
finish cut
says cut "worker 0 on ${name}1: .*: after 3.0 s worker 1 had not come to it|ended at step .*: a host was lost"
says cut "10.77.0.2 does not answer any more, and is left out"
says cut "starts again in 1 s: -np 1 on 10.77.0.1"
same_bits cut

wait $hanging
says hangs "no step for 120 seconds: the job hangs, and is ended"
says hangs "starts again in 1 s: -np 1"
echo "lost workers and hosts cost time, not bits"
