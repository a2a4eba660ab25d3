#!/usr/bin/env bash
# The whole chain on scikit-learn's handwritten digits, made of the commands that a user types.
set -euo pipefail
cd "$(dirname "$0")"
BIN="$(dirname "${PYTHON:-.venv/bin/python}")"
PORT="${PORT:-3000}"
say() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }
python() { "$BIN/python" "$@"; }

rm -rf runs/demo data/demo data/demo-imbalance-0.1
say python -m training prepare digits --output data/demo --imbalance 0.1
say python -m training fit --datastore data/demo-imbalance-0.1 --technique stacking-wl \
    --resolution 48 --epochs 6 --batch_size 16 --output runs/demo
say python -m export runs/demo --output models/demo.onnx
say python benchmarks/eval.py --model models/demo.onnx --datastore data/demo-imbalance-0.1 --against torch

printf '\n\033[1m$ TAILSTACK_MODEL=models/demo.onnx bentoml serve\033[0m\n'
TAILSTACK_MODEL=models/demo.onnx BENTOML_DO_NOT_TRACK=True "$BIN/bentoml" serve --host 127.0.0.1 --port "$PORT" \
    >runs/demo/serve.log 2>&1 &
SERVER=$!
trap 'kill $SERVER 2>/dev/null; wait $SERVER 2>/dev/null || true' EXIT
for _ in $(seq 60); do
    curl --silent --fail "http://127.0.0.1:$PORT/readyz" >/dev/null && break
    kill -0 $SERVER 2>/dev/null || { cat runs/demo/serve.log; exit 1; }
    sleep 1
done
# One of the pictures that nothing was trained on.
IMAGE="$(python -c "
import json
from pathlib import Path
test = json.loads(Path('data/demo/test.json').read_text())
print(Path('data/demo', test['root'], test['annotations'][len(test['annotations']) // 2]['image']))
")"
say curl --silent --show-error --fail --form "image=@$IMAGE" "http://127.0.0.1:$PORT/classify?top_k=3"
printf '\n\nThe truth is the name of its folder: %s\n' "$(basename "$(dirname "$IMAGE")")"

cat <<'END'

Three commands make a model of photos of your own, in a folder with one folder a class, and a fourth serves it:

    python -m training prepare PHOTOS --output data/photos
    python -m training fit --datastore data/photos --augment light --output runs/photos
    python -m export runs/photos
    BENTOML_DO_NOT_TRACK=True bentoml serve --host 127.0.0.1

(after `source .venv/bin/activate`)
END
