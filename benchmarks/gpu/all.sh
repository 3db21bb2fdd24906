#!/usr/bin/env bash
# The GPU tests and the smaller sizes of all GPU benchmarks, in about ten minutes; figures go to OUT (default: gpu-results).
# NANOGPT and NANOCHAT may name clones of the peers. A step that fails does not stop the next one.
set -u
out=${OUT:-gpu-results}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out"
export PYTHONPATH="$here/../../src${PYTHONPATH:+:$PYTHONPATH}"
python -m pytest -q -m gpu "$here/../../tests" >"$out/tests.txt" 2>&1
tail -n 3 "$out/tests.txt"
python "$here/training.py" --sizes 124m 350m --rounds 1 --seconds 8 --out "$out/training.json" \
  ${NANOGPT:+--nanogpt "$NANOGPT"} ${NANOCHAT:+--nanochat "$NANOCHAT"} 2>"$out/training.log"
python "$here/decoding.py" --sizes 124m 350m --rounds 2 --out "$out/decoding.json" 2>"$out/decoding.log"
python "$here/post_training.py" random --steps 8 --out "$out/post-training.json" 2>"$out/post-training.log"
