"""The cases, one module an op, and the generators; `registry.all_cases` collects them."""
