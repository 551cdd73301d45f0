#!/usr/bin/env bash
# Trains on a Cloud TPU slice: creates it, installs this checkout on every host, trains, goes on after preemptions.
#
#   launch/tpu_pod.sh --name=run1 --zone=us-east5-a --type=v5p-128 --version=v2-alpha-tpuv5 [--project=P] [--spot] \
#       [--restarts=20] [--delete] [--dry_run] -- \
#       --config=phenaki:stage=generator,size=paper --workdir=gs://BUCKET/run1
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
restarts=$((10#$restarts)) # 09 is nine
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
    tpu create "--accelerator-type=$type" "--version=$version" ${spot:+--spot} || return 1
  fi
  local archive
  archive=$(mktemp -d)/videogen.tar.gz
  run git -C "$(dirname "$0")/.." archive --format=tar.gz "--output=$archive" HEAD || fail "this is no git checkout"
  local copied=1
  run gcloud compute tpus tpu-vm scp "$archive" "$name:videogen.tar.gz" "${where[@]:1}" --worker=all || copied=
  rm -rf "$(dirname "$archive")"
  [[ -n $copied ]] || return 1
  on_all_hosts "mkdir -p videogen && tar -xzf videogen.tar.gz -C videogen && cd videogen && \
{ test -x .venv/bin/python || python3 -m venv .venv; } && .venv/bin/python -m pip install -qq -e '.[tpu]' gcsfs"
}

# 75 is what videogen.train exits with after a save on a preemption notice. gcloud may not hand an exit code on, so the
# hosts say it, too; the quotes keep the command itself, should it be shown, from saying so.
interrupted=75
train=$(printf '%q ' .venv/bin/python -m videogen.train "$@" "--interrupted_exit_code=$interrupted")
train="cd videogen && { $train; code=\$?; [[ \$code != $interrupted ]] || echo videogen.train was interrupt''ed; exit \$code; }"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for ((start = 0; start <= restarts; start++)); do
  if ((start)); then
    echo "start $((start + 1)) goes on from the last checkpoint" >&2
    [[ -n $dry_run ]] || sleep "${VIDEOGEN_RESTART_SECONDS:-30}"
  fi
  if ! prepare; then
    echo "the slice could not be made ready" >&2
    continue
  fi
  code=0
  on_all_hosts "$train" 2>&1 | tee "$log" || code=$?
  if ((code == 0)); then
    [[ -z $delete ]] || tpu delete --quiet
    exit 0
  fi
  if ((code == interrupted)) || grep -q "videogen.train was interrupted" "$log"; then
    echo "the run was interrupted, and saved its state" >&2
  elif [[ $(state) != READY ]]; then
    echo "the slice was preempted" >&2
  else
    # A slice that is still there, and was not told to go, did not cause this: the command would fail again.
    echo "error: training failed; see above" >&2
    exit 1
  fi
done
echo "error: no end after $restarts restarts" >&2
exit 1
