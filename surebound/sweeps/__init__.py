"""Sweeps over many instances: jobs keyed by content, executors that decide them, a store that can be continued."""
