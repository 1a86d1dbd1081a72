# The control plane as an image: static binaries and nothing else. From the root of the repository:
#
#   cargo build --release --workspace --bins
#   tar -c Dockerfile -C "target/$(rustc --print host-tuple)/release" towpath towpath-agent towpath-lines |
#     docker build --tag towpath/towpath -
#
# deploy/README.md says how to run it.
FROM scratch
COPY towpath towpath-agent towpath-lines /
ENV TOWPATH_LISTEN=0.0.0.0:7700 TOWPATH_DATA=/data
VOLUME /data
EXPOSE 7700
ENTRYPOINT ["/towpath"]
CMD ["serve"]
