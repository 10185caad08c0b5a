"""What the API takes and gives, beyond the domain's own types."""
