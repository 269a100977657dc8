"""What does the work. Knows nothing of MCP: functions take and return plain values and local paths.

The light half (errors, settings, ids, store, jobs, lease, models, environment, data, templates) never imports torch,
unsloth, transformers or datasets, so that the server stays small; the heavy half runs in workers and the chat host.
"""
