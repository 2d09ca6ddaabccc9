"""Requests in, tokens out: the host-side brain (sequence, plan, scheduler) and its hands."""
