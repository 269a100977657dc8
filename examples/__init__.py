"""Scripts that use the server as an agent would: over stdio, with the SDK's own client."""
