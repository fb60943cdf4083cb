"""Deep hierarchical VAEs, declared in YAML."""
