#!/usr/bin/env bash
# Everything that a GPU should be asked, in one command of at most nine minutes:
#
#   benchmarks/gpu.sh [--toy] [--only "PART ..."] [OUT]        default OUT: benchmarks/results/gpu
#
# Checks (compact doctor), training steps of ours and of TRL (padded one by one, packed with its fastest attention) at
# the shapes of Qwen2.5-0.5B and 1.5B, with LoRA and with all weights, at GSM8K's lengths and at 4 x 2,000 tokens, peak
# memory and MFU against 6 N, and generation. Results go to OUT/, with the device's name; gpu.md puts them together.
# A part that fails or finds no time left is named in gpu.md, and the others go on. --toy: a toy shape on a CPU; --only:
# some parts (doctor, step-SHAPE-lora, step-SHAPE-all, long-SHAPE-lora, long-SHAPE-all, generation), beside what OUT holds.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

toy="" only=""
while [ $# -gt 0 ]; do
    case "$1" in
        --toy) toy=1; shift ;;
        --only) only=" ${2:?--only needs names of parts} "; shift 2 ;;
        -*) echo "unknown option $1; see the first lines of this file" >&2; exit 2 ;;
        *) break ;;
    esac
done
out="${1:-benchmarks/results/gpu}"
python="${PYTHON:-python}"
limit="${SECONDS_IN_ALL:-540}"
mkdir -p "$out"
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1

if [ -n "$toy" ]; then
    device=cpu; shapes="toy"; trains="lora"; problems=4; rounds=1; long=(--lengths 40 --rounds 1)
    generation=(--device cpu --layers 1 --width 64 --vocabulary 256 --prompts 4 --limit 8 --batches 4 --rounds 1)
else
    device=cuda; shapes="qwen2.5-0.5b qwen2.5-1.5b"; trains="lora all"; problems=8; rounds=2; long=(--lengths 2000 --rounds 1)
    generation=(--device cuda --layers 24 --width 896 --vocabulary 151936 --prompts 96 --limit 128 --rounds 1)
fi
contenders="lens probe trl-single"
"$python" -c 'import trl' 2>/dev/null || contenders="lens probe plain"
if [ "$contenders" = "lens probe trl-single" ] && [ "$device" = cuda ]; then contenders="lens probe trl-single trl-packed"; fi

results=()
run() { # NAME COMMAND...: at most what is left of the time
    local name="$1" left=$((limit - SECONDS)) began=$SECONDS; shift
    if [ -n "$only" ] && [ "${only#* "$name" }" = "$only" ]; then return; fi
    if [ "$left" -lt 10 ]; then results+=("$name: not run, no time left"); return; fi
    echo "== $name (up to $left s)"
    timeout "$left" "$@" >"$out/$name.log" 2>&1
    local code=$?
    tail -n 15 "$out/$name.log"
    case $code in
        0) results+=("$name: done in $((SECONDS - began)) s") ;;
        124) results+=("$name: stopped, no time left") ;;
        *) results+=("$name: failed with code $code, see $name.log") ;;
    esac
}

"$python" benchmarks/step.py --device "$device" --describe >"$out/machine.json" || exit 1
run doctor timeout 150 "$python" -c "from compact_distill.cli import app; app()" doctor --device "$device" --seconds "$([ -n "$toy" ] && echo 5 || echo 100)"
for shape in $shapes; do
    for train in $trains; do
        flags=(); [ "$train" = lora ] && flags=(--lora)
        # shellcheck disable=SC2086
        run "step-$shape-$train" "$python" benchmarks/step.py --device "$device" --shape "$shape" "${flags[@]}" --sections main \
            --problems "$problems" --rounds "$rounds" --contenders $contenders --out "$out/step-$shape-$train"
        # shellcheck disable=SC2086
        run "long-$shape-$train" "$python" benchmarks/step.py --device "$device" --shape "$shape" "${flags[@]}" --sections length \
            "${long[@]}" --contenders $contenders --out "$out/long-$shape-$train"
    done
done
run generation "$python" benchmarks/generation.py "${generation[@]}"

if [ ${#results[@]} -eq 0 ]; then echo "--only$only names no part; see the first lines of this file" >&2; exit 2; fi
{
    echo "# On this device"; echo
    sed 's/^/    /' "$out/machine.json"; echo
    for line in "${results[@]}"; do echo "- $line"; done; echo
    for file in "$out"/doctor.log "$out"/step-*.md "$out"/long-*.md "$out"/generation.log; do
        [ -s "$file" ] || continue
        echo "## $(basename "${file%.*}")"; echo
        case "$file" in *.log) sed 's/^/    /' "$file" ;; *) cat "$file" ;; esac; echo
    done
} >"$out/gpu.md"
echo "== $out/gpu.md, after $SECONDS s"
printf '%s\n' "${results[@]}"
! printf '%s\n' "${results[@]}" | grep -q failed
