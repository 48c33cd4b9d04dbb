# The program and the library in one small image: the sidecar's, and the place to take the library from.
FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --package freeboard-sidecar --package freeboard-preload

FROM build AS build-demo
RUN CARGO_PROFILE_DEV_DEBUG=none cargo build --locked --package xtask

# `docker build --target demo`: the demonstration, without Rust.
FROM debian:bookworm-slim AS demo
RUN apt-get update \
    && apt-get install --yes --no-install-recommends qemu-utils xfsprogs \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /freeboard
COPY --from=build-demo /src/target/release/freeboard /src/target/release/libfreeboard.so /src/target/debug/xtask ./
ENV FREEBOARD_BIN_DIR=/freeboard
# What is written here is seen in the page cache, which it is not on a container's own root.
VOLUME /freeboard
ENTRYPOINT ["./xtask", "demo"]

# The program is linked to glibc, and probes of a pod need `test`: Debian's slim image has both.
FROM debian:bookworm-slim
COPY --from=build /src/target/release/freeboard /usr/local/bin/
COPY --from=build /src/target/release/libfreeboard.so /usr/local/lib/
ENV FREEBOARD_LIB=/usr/local/lib/libfreeboard.so
# By number, so that Kubernetes can see that it is not root.
USER 65532:65532
ENTRYPOINT ["freeboard"]
