#!/usr/bin/env bash
# Runs every fuzz target for some seconds, one after the other: scripts/fuzz.sh [SECONDS] [TARGET...]
# What a target finds is kept in fuzz/artifacts; the message says how to run it again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
. scripts/env.sh
version=0.13.1
seconds="${1:-60}"
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(safetensors_header tokenizer chat_template request grammar)

tools="$FAIRLEAD_CACHE/cargo-fuzz-$version"
if [ ! -x "$tools/bin/cargo-fuzz" ]; then
  echo "==> Installing cargo-fuzz $version" >&2
  cargo install --quiet --locked --root "$tools" --version "$version" cargo-fuzz
fi
# Instrumented builds share nothing with others. Without a sanitizer a stable compiler will do: what is looked for is panics,
# endless work and memory, and the code has no `unsafe`.
export CARGO_BUILD_BUILD_DIR="$FAIRLEAD_CACHE/cargo-build-fuzz"
fuzz() { "$tools/bin/cargo-fuzz" "$@"; }
flags=(--sanitizer none --target-dir "$FAIRLEAD_CACHE/fuzz-target")

failed=()
for target in "${targets[@]}"; do
  echo "==> $target, $seconds s" >&2
  mkdir -p "fuzz/corpus/$target"
  fuzz build "${flags[@]}" "$target"
  fuzz run "${flags[@]}" "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
    -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=30 -max_len=8192 -print_final_stats=1 || failed+=("$target")
done
[ ${#failed[@]} -eq 0 ] || { echo "fuzz: these targets found something (see fuzz/artifacts): ${failed[*]}" >&2; exit 1; }
