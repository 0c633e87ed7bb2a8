#!/usr/bin/env bash
# What a first GPU session must show, in under eight minutes and without a network: see scripts/gpu/check.py.
#   scripts/gpu_check.sh                         on a GPU
#   DEVICE=cpu scripts/gpu_check.sh              the same parts rehearsed on a CPU, with smaller sizes
#   scripts/gpu_check.sh --dry-run               the parts and their time limits
# PYTHON names an interpreter; OUT a folder for what it writes (build/gpu). WHEELS names a folder of wheels for packages
# that the interpreter lacks; make one with `scripts/gpu_check.sh --wheels FOLDER` where there is a network.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
needed=(msgspec pydantic pydantic-core annotated-types typing-inspection PyYAML rich typer gguf rouge-score wcwidth datasets
  dill multiprocess xxhash nltk)
if [ "${1:-}" = --wheels ]; then
  exec "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version "${TARGET:-3.12}" \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    --dest "${2:?a folder}" "${needed[@]}"
fi
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
fi
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
if ! "$python" -c 'import peftbench.methods' 2>/dev/null; then # a bare interpreter: install the checkout itself
  "$python" -m pip install --quiet --no-index --no-deps --no-build-isolation --target "$site" .
fi
"$python" scripts/gpu/check.py "$@"
