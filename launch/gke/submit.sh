#!/usr/bin/env bash
# Starts a training run on Google Kubernetes Engine as a JobSet, which restarts it after preemptions.
#
#   launch/gke/submit.sh --name=run1 --image=REGION-docker.pkg.dev/PROJECT/REPOSITORY/videogen \
#       --accelerator=tpu-v5p-slice --topology=4x4x4 --hosts=16 --chips=4 [--slices=2] [--restarts=20] [--dry_run] -- \
#       --config=phenaki:stage=generator,size=paper --workdir=gs://BUCKET/run1
#   launch/gke/submit.sh --name=run1 --image=… --accelerator=nvidia-h100-80gb --hosts=8 --chips=8 -- …
#
# --hosts counts those of one slice, --chips the accelerators of one host. What follows -- goes to videogen.train; the
# run directory must be a bucket. --with=xpk submits through xpk (TPUs; --topology is its --tpu-type, e.g. v5p-128)
# instead of kubectl. --dry_run prints and starts nothing. Needs kubectl with a cluster that has the JobSet controller,
# and an image with videogen in it (pip install '.[tpu]' gcsfs).
set -euo pipefail

fail() { echo "error: $1" >&2; exit 2; }

name= image= accelerator= topology= hosts= chips= dry_run=
slices=1 restarts=20 with=kubectl
while (($#)); do
  case $1 in
    --name=* | --image=* | --accelerator=* | --topology=* | --hosts=* | --chips=* | --slices=* | --restarts=* | \
      --with=*)
      option=${1%%=*}
      printf -v "${option#--}" '%s' "${1#*=}"
      ;;
    --dry_run) dry_run=1 ;;
    --) shift; break ;;
    *) fail "unknown option $1; the options are at the top of launch/gke/submit.sh" ;;
  esac
  shift
done
for option in name image accelerator hosts chips; do
  [[ -n ${!option} ]] || fail "--$option is missing; the options are at the top of launch/gke/submit.sh"
done
for option in hosts chips slices restarts; do
  [[ ${!option} =~ ^[0-9]+$ ]] || fail "--$option must be a whole number, got ${!option}"
  printf -v "$option" '%d' "$((10#${!option}))" # 016 is sixteen, not an octal number
done
[[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] || fail "--name must be lower-case letters, digits and -, got $name"
[[ $accelerator != tpu-* || -n $topology ]] || fail "--topology is missing, e.g. --topology=4x4x4"
[[ $accelerator == tpu-* || $slices == 1 ]] || fail "--slices is for TPUs"
[[ $with == kubectl || ($with == xpk && $accelerator == tpu-*) ]] || fail "--with must be kubectl or, for TPUs, xpk"
[[ " $* " == *" --config="* ]] || fail "--config is missing after --, e.g. -- --config=FILE --workdir=gs://BUCKET/RUN"
[[ " $* " == *" --workdir=gs://"* ]] || fail "--workdir=gs://BUCKET/RUN is missing after --: all hosts must share it"
# An interrupted process counts as failed, so that the set starts again.
set -- "$@" --interrupted_exit_code=75

if [[ $with == xpk ]]; then
  command=(xpk workload create "--workload=$name" "--docker-image=$image" "--tpu-type=$topology" "--num-slices=$slices"
    "--max-restarts=$restarts" "--command=$(printf '%q ' python -m videogen.train "$@")")
  if [[ -n $dry_run ]]; then
    printf '%q ' "${command[@]}"
    echo
  else
    "${command[@]}"
  fi
  exit
fi

kind=gpu
[[ $accelerator != tpu-* ]] || kind=tpu
manifest=$(<"$(dirname "$0")/jobset_$kind.yaml")
# What stands between double quotes in YAML.
quoted() {
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  printf '%s' "${text//$'\t'/\\t}"
}
arguments=
for argument in "$@"; do
  arguments+="${arguments:+, }\"$(quoted "$argument")\""
done
fill() { manifest=${manifest//"@$1@"/"$2"}; }
fill NAME "$name"
fill IMAGE "$(quoted "$image")"
fill ACCELERATOR "$(quoted "$accelerator")"
fill TOPOLOGY "$(quoted "$topology")"
fill HOSTS "$hosts"
fill CHIPS "$chips"
fill SLICES "$slices"
fill RESTARTS "$restarts"
fill ARGUMENTS "[$arguments]"
if [[ -n $dry_run ]]; then
  echo "$manifest"
else
  kubectl apply -f - <<<"$manifest"
fi
