#!/usr/bin/env bash
# Everything that has to be measured on a GPU, the most worth first, within SECONDS (default 540); run it again to go on.
#
#     benchmarks/on_gpu.sh [SECONDS]
#
# RESULTS      folder of the records (default: benchmarks/results)
# CHECKPOINTS  folders for the full-size checkpoint, 57.7 GB in the first with room (default: /tmp, then RAM)
# RAM_GB       RAM to plan with, where the machine shows less than it has
# WHEELS       folder of wheels to install first, for machines without network: benchmarks/wheels.sh makes it
# PYTHON       the interpreter that has torch and transformers (default: python3)
set -euo pipefail
cd "$(dirname "$0")/.."
end=$((SECONDS + ${1:-540}))
results=${RESULTS:-benchmarks/results}
read -ra checkpoints <<<"${CHECKPOINTS:-/tmp/full-size /dev/shm/full-size}"
python=${PYTHON:-python3}
mkdir -p "$results"

if [ -n "${WHEELS:-}" ]; then
	site=$(mktemp -d)
	"$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$WHEELS"/*.whl
	export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export HF_HUB_OFFLINE=1 # every file is here

# measure BENCHMARK OPTIONS...: what is left of the time is the limit; one that fails does not stop the others.
measure() {
	local left=$((end - SECONDS))
	if ((left < 40)); then return; fi
	local ram=()
	if [ "$1" = fit ] && [ -n "${RAM_GB:-}" ]; then ram=(--ram-gb "$RAM_GB"); fi
	timeout "$left" "$python" -m benchmarks "$1" --output "$results/$1.json" --full-size "${checkpoints[@]}" \
		--seconds $((left - 10)) "${ram[@]}" "${@:2}" || echo "$* ended with exit code $?"
}

# What only a card can show, with its own record in JUnit's format; a run that passed is not repeated.
prove() {
	local record=$results/gpu_tests.xml
	if [ -f "$record" ] && ! grep -qE "<(failure|error)" "$record"; then
		echo "tests/gpu: passed before"
		return
	fi
	local left=$((end - SECONDS))
	if ((left < 40)); then return; fi
	timeout "$left" "$python" -m pytest -q tests/gpu --junitxml "$record" ||
		echo "tests/gpu ended with exit code $?"
}

# Seconds beside stock come before all else: a machine that is lent once, for nine minutes, has them then.
measure speed --tasks generate --sizes 1024 512
prove
measure fit --part ours-24-generate --cold
measure fit --part ours-80-both
measure fit --part ours-24-edit
measure fit --part stock-80-generate
measure speed
measure fit --part stock-80-edit ours-48-both ours-141-both
measure fit
