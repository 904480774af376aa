#!/usr/bin/env bash
# Preset small on open data, one thread each: each task alone, and a short joint run; results/open_data is of an earlier recipe.
# usage: bash benchmarks/open_data.sh SOURCE OUT     SOURCE holds the packed open sets, OUT gets runs and logs
set -euo pipefail
source=$1 out=$2
export OMP_NUM_THREADS=1
python=${PYTHON:-.venv/bin/python}
mkdir -p "$out"
$python -m ups_model.data prepare open --source "$source"
run() { # name of the run, then arguments
  local name=$1
  shift
  $python -m ups_model.train --preset small --out "$out/$name" "$@" 2>&1 | tee "$out/$name.txt"
}
run pe --task pe --set steps=3000 &
run eap --task eap --set steps=1500
run ar3d --task ar3d --set steps=1000
run ar2d --task ar2d --set steps=1000
run joint --set steps=1400
wait
measure() { # name of the output, then a setting
  $python -m ups_model.evaluate "$out"/pe/best/step-00003000 --set "$2" 2>&1 | tee "$out/$1.txt"
}
measure pe-parallel evaluation.decoding=parallel
measure pe-flip evaluation.flip=true
