"""Ground floor: corpus in, sidecars, ledger, catalog, dataset out; no model, no rule."""
