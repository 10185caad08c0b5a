"""Monitoring of models: scraping, windows in memory, objectives, webhooks."""
