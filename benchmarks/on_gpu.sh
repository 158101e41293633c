#!/usr/bin/env bash
# Do on a machine with a GPU all that this project has to show there: train the missing runs of the campaign, run the
# tests marked gpu, and measure with scripts/benchmark.py.
#
#   IMAGES=FOLDER bash benchmarks/on_gpu.sh [RESULTS]
#
# It is meant for two runs of less than ten minutes each, in a checkout, without a network. A second run continues where
# the first one stopped, on the same machine or on another one: then lay the first run's results into on_gpu/ of the
# checkout. Small result files, eight at most, go to $OUT, or to RESULTS, or they stay in on_gpu/.
#
#   IMAGES    folder of the images of lightning_logs/reference, whose missing runs are trained; without it, all runs are
#             trained, on the stand-in, drawn images
#   BUDGET    seconds of a run, 570 by default; a step that has too little time left waits for the next run
#   WORKERS   processes that train the campaign's runs at the same time, 12 by default
#   PYTHON    python3 by default
#   ACCELERATOR  gpu by default; cpu tries the script itself
#
# If packages are missing there, carry their wheels. On a machine with a network, with the other one's Python and the
# version of torch that it has (no wheel of torch or CUDA is carried):
#
#   pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 -d wheels \
#     lightning pytorch-lightning lightning-utilities torchmetrics tensorboard tensorboard-data-server \
#     jsonargparse docstring-parser typeshed-client optuna alembic mako sqlalchemy greenlet colorlog pydoe3 rich pytest \
#     pytest-timeout pytest-xdist scipy matplotlib pillow filelock
#
# and on the machine, before this script:
#
#   python3 -m pip install --no-index --no-deps --target site wheels/*.whl && export PYTHONPATH=$PWD/site
#
# The goals, and what was measured: docs/speed.md, "On a GPU".
set -euo pipefail
cd "$(dirname "$0")/.."

: "${BUDGET:=570}" "${WORKERS:=12}" "${PYTHON:=python3}" "${ACCELERATOR:=gpu}"
state=on_gpu
results=${OUT:-${1:-$state}}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=${OMP_NUM_THREADS:-4} PYTHONUNBUFFERED=1
mkdir -p "$state/campaign/lightning_logs" "$results"
touch "$state/done.txt"
log=$PWD/$state/log.txt

flags=(--trainer.accelerator "$ACCELERATOR" --data.source synthetic)
if [ -n "${IMAGES:-}" ]; then flags+=(--data.source folder --data.root "$(realpath "$IMAGES")"); fi

finish() {
    local status=$?
    [ "$results" -ef "$state" ] || find "$state" -maxdepth 1 -type f -exec cp {} "$results" \;
    exit "$status"
}
trap finish EXIT
trap 'exit 143' TERM INT

say() { echo "$*" | tee -a "$log"; }

# step NAME SECONDS COMMAND...: run a command, unless it was run before or less than SECONDS are left. Failed tests and
# failed runs are a result as well. A command that the clock ended is run again.
step() {
    local name=$1 needed=$2 began=$SECONDS left=$((BUDGET - SECONDS)) status=0
    shift 2
    if grep -qx "$name" "$state/done.txt"; then
        say "$name: was done before"
    elif [ "$left" -lt "$needed" ]; then
        say "$name: waits for the next run, since $left s are left"
    else
        say "$name: begins, $left s are left"
        timeout --kill-after 5 $((left - 15)) "$@" >>"$log" 2>&1 || status=$?
        say "$name: exit status $status after $((SECONDS - began)) s"
        case $status in 124 | 137) ;; *) echo "$name" >>"$state/done.txt" ;; esac
    fi
}

part() { step "$1" "$3" "$PYTHON" scripts/benchmark.py --parts "$1" --rounds "$2" --output "$state" "${flags[@]}"; }

say "$(date -u +%FT%TZ) $("$PYTHON" -c 'import lightning, torch
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
print(gpu, "torch", torch.__version__, "lightning", lightning.__version__)')"

# The campaign has a folder of its own, where it may write pages. On 45,000 images, a run takes longest: those come first.
campaign=$state/campaign reference=lightning_logs/reference
cp -r configs docs README.md "$campaign"
[ -z "${IMAGES:-}" ] || cp -r "$reference" "$campaign/lightning_logs"
[ ! -f "$state/campaign.tar.gz" ] || tar -xzf "$state/campaign.tar.gz" -C "$campaign"
names=$(sed -n '/^runs:/,/^studies:/s/^  \([a-z0-9_]*\):.*/\1/p' docs/campaign.yaml | tac | tr '\n' ' ')
export PYTHON WORKERS REPRODUCE="$PWD/scripts/reproduce.py" NAMES="regularized $names"
# shellcheck disable=SC2016  # the inner shell expands these
step campaign 60 bash -c 'cd "$0" || exit; workers=(); status=0; export OMP_NUM_THREADS=1
    for _ in $(seq "$WORKERS"); do "$PYTHON" "$REPRODUCE" --only $NAMES "$@" & workers+=($!); done
    for worker in "${workers[@]}"; do wait "$worker" || status=$?; done; exit $status' "$campaign" "${flags[@]}"
new=$(cd "$campaign" && for run in "$reference"/*/version_*; do
    [ ! -f "$run/summary.json" ] || [ -n "${IMAGES:-}" -a -e "$OLDPWD/$run" ] || echo "$run"
done)
[ -z "$new" ] || tar -czf "$state/campaign.tar.gz" -C "$campaign" $new
say "new runs of the campaign: $(wc -w <<<"$new")"

on=gpu
[ "$ACCELERATOR" != cpu ] || on=cpu
step tests 60 "$PYTHON" -m pytest -n 8 --maxprocesses 8 -m gpu --gpu-tests-on "$on" tests/test_gpu.py
part steps 2 200
part end_to_end 2 90
part scaling 1 120
