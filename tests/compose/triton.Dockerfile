# Stands in for the official Triton image, which `make compose-check` cannot get: the server of the nvidia-pytriton wheel
# with this project's Python-based backends, behind the same command line.
ARG CONTROLPLANE_IMAGE
FROM ${CONTROLPLANE_IMAGE}
USER root
RUN apt-get update -q && apt-get install -y -q --no-install-recommends curl libpython3.11 && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir -c constraints.txt '.[embedded]'
RUN python -c "from pathlib import Path; from controlplane.triton.embedded.backend_directory import *; from controlplane.triton.embedded.installation import *; print(assemble_backends(find_installation(), Path('/opt/backends')))" \
 && mv /opt/backends/backends-* /opt/backends/all && chmod -R a+rX /opt/backends
COPY tritonserver /usr/local/bin/tritonserver
USER 1000:1000
ENTRYPOINT []
