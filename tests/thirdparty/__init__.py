"""Projects that nobody here wrote, on poolkit's engine: `python -m tests.thirdparty` runs their own tests, and them."""
