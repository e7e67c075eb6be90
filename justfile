# The usual jobs. `just` lists them; https://just.systems

set shell := ["bash", "-euc"]

# List the jobs
default:
    @just --list

# Build the program
build:
    cargo build --release --workspace

# Run all tests
test *ARGS:
    cargo test --release --workspace {{ARGS}}

# Everything that must hold before a change lands
ci:
    .ci/run

# Format and lint
lint:
    cargo fmt --all
    cargo clippy --release --workspace --all-targets -- -D warnings

# The API's documentation
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps

# The book, in target/book (needs mdbook)
book:
    mdbook build docs --dest-dir ../target/book

# Fuzz the parsers: all of them for 10 million executions, or one
fuzz *ARGS:
    fuzz/run.sh {{ARGS}}

# Licences, advisories and sources of dependencies (needs cargo-deny)
deny:
    cargo deny check

# Licences and sources alone, with nothing but python3
licences:
    python3 tools/sbom.py --check

# What the program is made of, as CycloneDX
sbom OUT="target/bitsmith.cdx.json":
    python3 tools/sbom.py > {{OUT}}

# Man pages, in target/man
man:
    cargo run --release -- man --out target/man

# Coverage of the tests (needs cargo-llvm-cov)
coverage:
    cargo llvm-cov --release --workspace --html --output-dir target/coverage

# Mutants that no test catches (needs cargo-mutants; takes hours)
mutants *ARGS:
    cargo mutants --package bitsmith-formats --package bitsmith-quantize {{ARGS}}

# Speed of the encoders, with a note of what it was before
bench:
    benches/encode.sh
