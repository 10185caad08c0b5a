"""The typed client of the REST API and of the gateway. The CLI uses it."""
