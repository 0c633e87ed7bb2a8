#!/usr/bin/env bash
# Where there is a GPU: the tests marked gpu, and the quickstart and part of glue_small on it; leaves records to commit
# under results/gpu. Where there is none: says so and exits 0. Needs `make test`'s environment, or PYTHON=... naming one.
#   scripts/gpu_check.sh [GLUE_DIRECTORY]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
if ! "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then
  echo "gpu_check: no CUDA device here; nothing to check."
  exit 0
fi
data=(${1:+--data-dir "$1"})
"$python" -m pytest -m gpu -q
"$python" -m peftbench run experiments/quickstart.yaml --device cuda --jobs 1 --results results/gpu/quickstart
"$python" -m peftbench run experiments/glue_small.yaml --device cuda --jobs 1 --results results/gpu/glue_small \
  --only task=glue/stsb --only task=glue/sst2 --only seed=0 "${data[@]}"
"$python" benchmarks/step_time.py --device cuda --out results/gpu/step_time.json
echo "gpu_check: done; commit results/gpu"
