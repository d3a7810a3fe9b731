"""Where assistants meet the archive: MCP, hooks, and the entries in their clients' own files."""
