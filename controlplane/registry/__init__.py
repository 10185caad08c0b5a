"""Models, versions, aliases, deployments and blobs, kept in an object store."""
