#!/usr/bin/env bash
# Trains under mpirun, through lost workers and lost hosts: a job that ends by one, or hangs, is started
# again from its newest good checkpoint, on the hosts that still answer and on the largest number of
# workers that the run can have there. The bits are those of an undisturbed run. Put it before the
# command, which must say -np and, for several hosts, --host or --hostfile with slots:
#
#   launch/resilient.sh [--restarts 10] [--hang 1800] \
#     mpirun -np 8 --hostfile hosts lockstep train --data DATASET --run RUN ...
#
# --restarts N: gives up after so many. --hang SECONDS: a job that finishes no step for so long is ended;
# at least 120: choose more than its start, in which the lease of a lost host is watched for a minute and
# --stage copies the dataset, and more than its longest evaluation. USR1, TERM, INT (Ctrl-C) and HUP (the
# terminal was closed) save and stop, with exit code 75. Exit codes are those of lockstep: 2, 3 and 75 are
# never started again, 4 says that it gave up.
set -uo pipefail

say() { echo "resilient.sh: $*" >&2; }
usage() {
  say "$*"
  exit 2
}

case ${1:-} in -h | --help)
  sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"
  exit 0
  ;;
esac

restarts=10 hang=1800
while [[ ${1:-} == --* ]]; do
  [[ $1 != --*=* ]] || set -- "${1%%=*}" "${1#*=}" "${@:2}"  # --hang=300
  [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || usage "$1 needs a number above 0"
  case $1 in
    --restarts) restarts=$2 ;;
    --hang) hang=$2 ;;
    *) usage "there is no option $1; there are --restarts and --hang, and the command follows" ;;
  esac
  shift 2
done
[ "$hang" -ge 120 ] || usage "--hang $hang is too short: a start alone may take a minute; choose 120 or more"

# Hosts and their slots, from "a:2,b:2" or from the lines "a slots=2" of a file.
hosts=() slots=()
add_host() {
  [[ $1 =~ ^([^:]+)(:([1-9][0-9]*))?$ ]] || usage "'$1' is no host: write NAME:WORKERS"
  hosts+=("${BASH_REMATCH[1]}") slots+=("${BASH_REMATCH[3]:-1}")
}
read_hostfile() {
  [ -r "$1" ] || usage "the hostfile $1 cannot be read"
  local host rest
  while read -r host rest; do
    [[ -z $host || $host == \#* ]] && continue
    [[ " $rest " =~ [[:space:]]slots[[:space:]]*=[[:space:]]*([0-9]+)[[:space:]] ]] ||
      usage "$1: say how many workers $host may have: $host slots=N"
    add_host "$host:${BASH_REMATCH[1]}"
  done <"$1"
}

# The command: mpirun and its options, without those that a restart may change, which go where -np was
# (another program may stand before lockstep); lockstep train and its.
launcher=() at=0 workers='' listed=''
while [ $# -gt 0 ] && [ "${2:-}" != train ]; do
  case $1 in
    -np | -n | --np) at=${#launcher[@]} workers=${2:-} && shift ;;
    -host | --host | -H)
      IFS=, read -ra listed <<<"${2:-}"
      for host in "${listed[@]}"; do add_host "$host"; done
      shift
      ;;
    -hostfile | --hostfile | -machinefile | --machinefile) read_hostfile "${2:-}" && shift ;;
    *) launcher+=("$1") ;;
  esac
  shift
done
[ $# -gt 0 ] ||
  usage "the command must be 'mpirun -np N ... lockstep train ...': only train can be started again"
program=$1
shift 2
[[ $workers =~ ^[1-9][0-9]*$ ]] || usage "say how many workers: mpirun -np N ..."
command -v "${launcher[0]:-}" >/dev/null ||
  usage "there is no program '${launcher[0]:-}': the command must begin with mpirun"
wanted=$workers

# The value of an option of train: of the command, or as the run has it.
option() {
  local name=$1 value='' word previous=''
  shift
  for word in "$@"; do
    [ "$previous" = "--$name" ] && value=$word
    [[ $word == --$name=* ]] && value=${word#*=}
    previous=$word
  done
  [ -n "$value" ] || value=$(sed -nE "s/^$name = ([^ ]+).*/\1/p" "${run:+$run/run.cfg}" 2>/dev/null)
  echo "$value"
}
run=$(run='' option run "$@")
[ -n "$run" ] || usage "say where it trains: --run RUN"

# A host that was cut off ends mpirun after some seconds; by default it would wait for good.
export OMPI_MCA_oob_tcp_keepalive_time=${OMPI_MCA_oob_tcp_keepalive_time:-3}
export OMPI_MCA_oob_tcp_keepalive_intvl=${OMPI_MCA_oob_tcp_keepalive_intvl:-1}
export OMPI_MCA_oob_tcp_keepalive_probes=${OMPI_MCA_oob_tcp_keepalive_probes:-3}

host_list() {
  local i list=()
  for i in "${!hosts[@]}"; do list+=("${hosts[i]}:${slots[i]}"); done
  (IFS=, && echo "${list[*]}")
}

last_step() {
  local step
  step=$(tail -n 1 "$run/metrics.jsonl" 2>/dev/null | sed -nE 's/.*"step":([0-9]+).*/\1/p')
  echo "${step:-0}"
}

end_job() {
  kill -TERM "$1"
  for _ in {1..10}; do
    kill -0 "$1" 2>/dev/null || break
    sleep 1
  done
  kill -KILL "$1"
}

# Seconds since the last step, or since the job began.
idle_seconds() {
  local last
  last=$(stat -c %Y "$run/metrics.jsonl" 2>/dev/null || echo 0)
  echo $(($(date +%s) - (last > began ? last : began)))
}

# What changes once the workers have started: files that the first of them writes.
signs() { stat -c '%i %y' "$run"/{lease,status}.json 2>/dev/null; }

# Hands a request to stop on to the workers. In their start-up mpirun would lose it, or they would end
# by it: then it waits.
job='' asked=''
hand_on() {
  [ "$asked" = unsent ] && [ -n "$job" ] && [ "$(signs)" != "$before" ] || return
  asked=sent
  kill -USR1 "$job" 2>/dev/null
}
trap 'asked=unsent; hand_on' USR1 TERM INT HUP

# Runs the job to its end; sets `code`. mpirun has a session of its own: a terminal's Ctrl-C must not
# reach it, as it would end the workers unsaved. Workers of this host that outlive mpirun are ended, as
# they would hold the run.
run_job() {
  local on=() began now children=''
  hung=''
  [ ${#hosts[@]} -eq 0 ] || on=(--host "$(host_list)")
  began=$(date +%s) before=$(signs)
  setsid "${launcher[@]:0:at}" -np "$workers" "${on[@]}" "${launcher[@]:at}" "$program" train "$@" &
  job=$!
  while kill -0 "$job" 2>/dev/null; do
    hand_on
    sleep 1 &
    wait -n "$job" $! 2>/dev/null
    now=$(ps -o pid=,lstart= --ppid "$job") && children=$now
    if [ "$(idle_seconds)" -gt "$hang" ]; then
      say "no step for $hang seconds: the job hangs, and is ended"
      hung=yes
      end_job "$job" 2>/dev/null
    fi
  done
  wait "$job"
  code=$? job=''
  local pid start
  while read -r pid start; do  # a number may be another process's by now
    [ -z "$pid" ] || [ "$(ps -o lstart= -p "$pid")" != "$start" ] || kill -KILL "$pid"
  done <<<"$children"
}

# Takes the hosts that do not answer off the list; says which.
lost=()
drop_lost_hosts() {
  local i kept=() kept_slots=()
  lost=()
  for i in "${!hosts[@]}"; do
    if timeout -k 2 20 "${launcher[@]:0:at}" -np 1 --host "${hosts[i]}" "${launcher[@]:at}" true \
      >/dev/null 2>&1; then
      kept+=("${hosts[i]}") kept_slots+=("${slots[i]}")
    else
      lost+=("${hosts[i]}")
    fi
  done
  hosts=("${kept[@]}") slots=("${kept_slots[@]}")
}

# The largest number of workers that the hosts hold and the run can have; 0: none.
choose_workers() {
  local most=$wanted total=0 shares count
  if [ ${#slots[@]} -gt 0 ]; then
    for count in "${slots[@]}"; do total=$((total + count)); done
    most=$((total < wanted ? total : wanted))
  fi
  shares=$(option virtual-workers "$@")
  for ((workers = most; ${shares:-$wanted} % workers != 0; workers--)); do :; done
}

pause=1 failed_at='' failures=0
for ((attempt = 0; ; attempt++)); do
  run_job "$@"
  case $code in 0 | 2 | 3 | 75) exit $code ;; esac
  case $code in
    4) reason="a worker failed, or waited in vain for another" ;;
    137) reason="a worker was killed (out of memory?), or mpirun was" ;;
    205) reason="a host was lost" ;;
    *) reason="mpirun ended with code $code" ;;
  esac
  step=$(last_step)
  say "ended at step $step: $reason"
  [ -z "$asked" ] || exit $((code == 4 ? 4 : 75))
  [ $attempt -lt "$restarts" ] || { say "given up after $restarts restarts"; exit 4; }

  had=${#hosts[@]}
  drop_lost_hosts
  for host in "${lost[@]}"; do say "$host does not answer any more, and is left out"; done
  [ "$had" -eq 0 ] || [ ${#hosts[@]} -gt 0 ] || {
    say "no host answers any more, or mpirun cannot work as it was called: look at the first error above"
    exit 4
  }
  if [ $attempt -eq 0 ] && [ -z "$hung" ] && [ ${#lost[@]} -eq 0 ] && [ "$(signs)" = "$before" ]; then
    say "it ended before it trained in $run, though every host answers: mend the command, or what the" \
      "first error above names"
    exit 4
  fi
  [ "$step" = "$failed_at" ] && [ ${#lost[@]} -eq 0 ] || failures=0
  failed_at=$step failures=$((failures + 1))
  if [ $failures -eq 3 ]; then
    say "it ended at the same step three times, though every host answers: started again it would" \
      "end there again; look at the first error above"
    exit 4
  fi
  choose_workers "$@"
  say "starts again in $pause s: -np $workers${hosts[0]:+ on ${hosts[*]}}"
  sleep "$pause" &
  [ -n "$asked" ] || wait $!
  [ -z "$asked" ] || exit 75
  pause=$((pause < 128 ? 2 * pause : 256))
done
