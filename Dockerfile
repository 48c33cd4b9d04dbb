# The program and the library in one small image: the sidecar's, and the place to take the library from.
FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --package freeboard-sidecar --package freeboard-preload

# The program is linked to glibc, and probes of a pod need `test`: Debian's slim image has both.
FROM debian:bookworm-slim
COPY --from=build /src/target/release/freeboard /usr/local/bin/
COPY --from=build /src/target/release/libfreeboard.so /usr/local/lib/
ENV FREEBOARD_LIB=/usr/local/lib/libfreeboard.so
# By number, so that Kubernetes can see that it is not root.
USER 65532:65532
ENTRYPOINT ["freeboard"]
