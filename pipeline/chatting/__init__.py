"""A conversation with a quantised model under a KV-cache policy: session, what is saved of it, terminal."""
