#!/bin/sh
# Calls the compiler, with counters of coverage in the crates whose paths are to be found: our own and those that parse for us.
# The flags are those of cargo-fuzz, all of which stable Rust has.
rustc=$1
shift
case " $* " in
*" --crate-name bitsmith_"* | *" --crate-name safetensors "* | *" --crate-name minijinja "* | *" --crate-name tokenizers "*)
    exec "$rustc" "$@" --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares
    ;;
esac
exec "$rustc" "$@"
