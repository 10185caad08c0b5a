"""HAProxy: its process, configuration, route table and runtime API."""
