"""The cases: one module per op, and the generators. `registry.all_cases` collects them."""
