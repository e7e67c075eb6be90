#!/usr/bin/env bash
# Fuzzes bitsmith's parsers for a fixed number of executions, with stable Rust.
#
#   fuzz/run.sh                    10 million executions over all targets
#   fuzz/run.sh gguf 500000        one target
#   fuzz/run.sh seeds              only writes the seeds
#
# An input that crashes, hangs for more than a second or takes more than 512 MiB ends the run and lies in fuzz/artifacts/TARGET. It is
# kept in fuzz/regressions/TARGET once it is mended; `cargo test` runs everything there.
set -euo pipefail
cd "$(dirname "$0")"

# Executions of each target in a run of all, in thousands: what is fast and what is most exposed gets most.
ALL="gguf:2500 safetensors:1500 index:500 packed:300 imatrix:800 stats:300 tokenizer:100 vocabulary:200 template:500 torch:600
pickle:1000 config:500 plan:300 task:200 results:300 records:200 request:1000 reference:200"

RUSTC_WRAPPER="$PWD/rustc.sh" cargo build --quiet --release
fuzz="${CARGO_TARGET_DIR:-target}/release/fuzz"

one() {
    local target=$1 runs=$2
    mkdir -p "corpus/$target" "artifacts/$target"
    BITSMITH_FUZZ_SEEDS="corpus/$target" BITSMITH_FUZZ_TARGET=$target "$fuzz"
    [ "$runs" = 0 ] && return
    BITSMITH_FUZZ_TARGET=$target "$fuzz" "corpus/$target" -runs="$runs" -timeout=1 -rss_limit_mb=512 -malloc_limit_mb=512 \
        -max_len=65536 -artifact_prefix="artifacts/$target/" -print_final_stats=1 -verbosity=0 2>&1 |
        sed "s/^/$target: /"
}

case "${1:-all}" in
all) for entry in $ALL; do one "${entry%:*}" "${entry#*:}000"; done ;;
seeds) for entry in $ALL; do one "${entry%:*}" 0; done ;;
*) one "$1" "${2:-100000}" ;;
esac
