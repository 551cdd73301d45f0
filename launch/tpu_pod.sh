#!/usr/bin/env bash
# Trains on a Cloud TPU slice: creates it, installs this checkout on every host, trains, goes on after preemptions.
#
#   launch/tpu_pod.sh --name=run1 --zone=us-east5-a --type=v5p-128 --version=v2-alpha-tpuv5 [--project=P] [--spot] \
#       [--restarts=20] [--delete] [--dry_run] -- \
#       --config=configs/phenaki.py:stage=generator,size=paper --workdir=gs://BUCKET/run1
#
# What follows -- goes to videogen.train. The run directory must be a bucket: all hosts share it, and it outlives them.
# --delete deletes the slice at the end; --dry_run prints the commands and runs none. Needs gcloud, logged in.
set -euo pipefail

fail() { echo "error: $1" >&2; exit 2; }

name= zone= type= version= project= spot= delete= dry_run= restarts=20
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --spot) spot=1 ;;
    --delete) delete=1 ;;
    --dry_run) dry_run=1 ;;
    --) shift; break ;;
    *) fail "unknown option $1; the options are at the top of launch/tpu_pod.sh" ;;
  esac
  shift
done
for option in name zone type version; do
  [[ -n ${!option} ]] || fail "--$option is missing; the options are at the top of launch/tpu_pod.sh"
done
[[ $restarts =~ ^[0-9]+$ ]] || fail "--restarts must be a whole number, got $restarts"
[[ " $* " == *" --config="* ]] || fail "--config is missing after --, e.g. -- --config=FILE --workdir=gs://BUCKET/RUN"
[[ " $* " == *" --workdir=gs://"* ]] || fail "--workdir=gs://BUCKET/RUN is missing after --: all hosts must share it"

where=("$name" "--zone=$zone")
[[ -z $project ]] || where+=("--project=$project")

run() {
  if [[ -n $dry_run ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

tpu() { run gcloud compute tpus tpu-vm "$1" "${where[@]}" "${@:2}"; }

on_all_hosts() { tpu ssh --worker=all "--command=$1"; }

state() {
  if [[ -n $dry_run ]]; then return; fi
  gcloud compute tpus tpu-vm describe "${where[@]}" '--format=value(state)' 2>/dev/null || true
}

prepare() {
  if [[ $(state) != READY ]]; then
    # A preempted slice keeps its name until it is deleted.
    if [[ -n $(state) ]]; then tpu delete --quiet; fi
    tpu create "--accelerator-type=$type" "--version=$version" ${spot:+--spot}
  fi
  local archive
  archive=$(mktemp -d)/videogen.tar.gz
  run git -C "$(dirname "$0")/.." archive --format=tar.gz "--output=$archive" HEAD
  run gcloud compute tpus tpu-vm scp "$archive" "$name:videogen.tar.gz" "${where[@]:1}" --worker=all
  rm -rf "$(dirname "$archive")"
  on_all_hosts "mkdir -p videogen && tar -xzf videogen.tar.gz -C videogen && cd videogen && \
{ test -x .venv/bin/python || python3 -m venv .venv; } && .venv/bin/python -m pip install -qq -e '.[tpu]' gcsfs"
}

train=$(printf '%q ' .venv/bin/python -m videogen.train "$@" --interrupted_exit_code=75)
for ((start = 0; start <= restarts; start++)); do
  prepare
  if on_all_hosts "cd videogen && $train"; then
    [[ -z $delete ]] || tpu delete --quiet
    exit 0
  fi
  # A slice that is still there was not preempted: the command itself failed, and would fail again.
  [[ $(state) != READY ]] || { echo "error: training failed; see above" >&2; exit 1; }
  echo "the slice was preempted; start $((start + 2)) goes on from the last checkpoint" >&2
done
echo "error: preempted more than $restarts times" >&2
exit 1
