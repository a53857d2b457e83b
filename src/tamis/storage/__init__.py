"""Ground floor: corpus in, sidecars, ledger, catalog, dataset out. Knows files, no model, no rule."""
