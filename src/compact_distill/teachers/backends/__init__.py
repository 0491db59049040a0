"""Where rationales come from: servers, local models, a Ray cluster, files, the lab."""
