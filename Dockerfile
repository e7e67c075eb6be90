# bitsmith in an image of its own:
#   docker build -t bitsmith --build-arg COMMIT=$(git rev-parse HEAD) .
#   docker run --rm -v "$PWD:/work" -v bitsmith-cache:/cache bitsmith run org/model --to gguf:q4_k_m --out release
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
ARG COMMIT=""
ENV BITSMITH_COMMIT=$COMMIT
RUN cargo build --release --locked --features s3

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/bitsmith /usr/local/bin/bitsmith
# Downloads and unpacked models; a volume keeps them.
ENV HF_HOME=/cache/huggingface XDG_CACHE_HOME=/cache
RUN mkdir -p /cache /work && chmod 777 /cache /work
WORKDIR /work
ENTRYPOINT ["bitsmith"]
CMD ["run"]
