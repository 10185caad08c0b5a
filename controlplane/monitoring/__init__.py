"""How well every model is doing: scraping, windows in memory, objectives, webhooks."""
