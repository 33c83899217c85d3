#!/usr/bin/env bash
# Two hosts on this machine: network namespaces with a host name each, joined by a cable, 10.77.0.1 and
# 10.77.0.2. As root.
#
#   hosts.sh up NAME       makes NAME1 and NAME2; ends with 77 where that cannot be had
#   hosts.sh down NAME     removes them, and ends what runs on them
#   hosts.sh cut NAME      takes the plug of NAME2 out
#   hosts.sh slow NAME     lets NAME2 send 80 Mbit/s
#   hosts.sh fast NAME     takes that back
#   hosts.sh shell ADDRESS COMMAND...   runs a command on a host, as ssh would: mpirun's plm_rsh_agent.
#                                       The hosts' NAME comes from LOCKSTEP_TEST_HOSTS
set -euo pipefail

up() {
  local name=$1 i
  if [ "$(id -u)" -ne 0 ] || ! ip netns add "${name}1" 2>/dev/null; then
    echo "no hosts: network namespaces need root and iproute2" >&2
    exit 77
  fi
  ip netns add "${name}2"
  ip link add eth0 netns "${name}1" type veth peer name eth0 netns "${name}2"
  for i in 1 2; do
    ip -n "$name$i" addr add "10.77.0.$i/24" dev eth0
    ip -n "$name$i" link set eth0 up
    ip -n "$name$i" link set lo up
  done
}

down() {
  local i
  for i in 1 2; do
    ip netns pids "$1$i" 2>/dev/null | xargs -r kill -KILL 2>/dev/null || true
    ip netns del "$1$i" 2>/dev/null || true
  done
}

# The network namespace alone: `ip netns exec` would also hide /sys, which Slurm needs.
shell() {
  local host=$LOCKSTEP_TEST_HOSTS${1##*.}
  shift
  exec nsenter --net="/run/netns/$host" unshare --uts bash -c 'hostname "$0" && exec bash -c "$1"' "$host" "$*"
}

case $1 in
  up | down) "$1" "$2" ;;
  cut) ip -n "${2}2" link set eth0 down ;;
  slow) ip netns exec "${2}2" tc qdisc add dev eth0 root tbf rate 80mbit burst 64k latency 50ms ;;
  fast) ip netns exec "${2}2" tc qdisc del dev eth0 root ;;
  shell) shell "${@:2}" ;;
esac
