# The program and the library in one small image: the sidecar's, and the place to take the library from.
FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
# The program as one static file, and both without what only a debugger reads.
RUN cargo build --release --locked --package freeboard-preload \
    && cargo rustc --release --locked --package freeboard-sidecar --bin freeboard -- -C target-feature=+crt-static
RUN mkdir -p /image/usr/local/bin /image/usr/local/lib \
    && strip -o /image/usr/local/bin/freeboard target/release/freeboard \
    && strip -o /image/usr/local/lib/libfreeboard.so target/release/libfreeboard.so \
    && chmod 755 /image/usr/local/bin/freeboard \
    && find /image -exec touch --date=@0 {} +

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

# Nothing but the two files: no shell, no libc. Their times are fixed, so that the same sources give the same layer.
FROM scratch
COPY --from=build /image/ /
ENV PATH=/usr/local/bin FREEBOARD_LIB=/usr/local/lib/libfreeboard.so
# By number, so that Kubernetes can see that it is not root.
USER 65532:65532
ENTRYPOINT ["freeboard"]
