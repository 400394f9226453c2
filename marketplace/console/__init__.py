"""Pages for people, rendered by the server: no script framework, no asset from another host."""
