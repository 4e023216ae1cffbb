# Other names for what run.py does; nothing here is needed.
.PHONY: demo test lint bench lock

demo test lint bench:
	@python3 run.py $@

# Renew the locks after a change of requirements/*.in; add UP=--upgrade for the newest versions of everything.
# Each is bound by the one before, so that one environment serves all tasks. Needs uv. promise, which graphene-django
# wants, is left out: there is no ready-made build of it, and run.py installs nothing else.
lock:
	@for name in demo test dev bench; do \
	    uv pip compile --quiet --no-config --universal --generate-hashes --no-header --no-annotate --no-emit-package promise $(UP) \
	        --python-version 3.11 requirements/$$name.in --output-file requirements/$$name.txt || exit 1; \
	done
