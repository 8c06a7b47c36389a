"""The checks, one module an area. What each enforces stands in docs/contract.md."""
