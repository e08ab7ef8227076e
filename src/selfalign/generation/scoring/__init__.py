"""Compute log-probabilities of given texts with torch, vLLM or a server."""
