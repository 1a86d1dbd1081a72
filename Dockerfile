# The control plane as an image: static binaries and nothing else. From the root of the repository:
#
#   cargo build --release --workspace --bins
#   docker build --build-arg BINARIES="target/$(rustc --print host-tuple)/release" --tag towpath/towpath .
#
# deploy/README.md says how to run it.
FROM scratch
ARG BINARIES=target/x86_64-unknown-linux-gnu/release
COPY ${BINARIES}/towpath ${BINARIES}/towpath-agent ${BINARIES}/towpath-lines /
ENV TOWPATH_LISTEN=0.0.0.0:7700 TOWPATH_DATA=/data
VOLUME /data
EXPOSE 7700
ENTRYPOINT ["/towpath"]
CMD ["serve"]
