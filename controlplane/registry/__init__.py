"""Storage of models, versions, aliases, deployments and blobs in an object store."""
