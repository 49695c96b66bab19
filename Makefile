# What one does with this work tree. `make demo` and `make cities` need Rust, make and a C compiler, nothing else;
# `make test` and `make bench` also fetch what they run beside (see tests/setup).

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo cities test setup fmt lint doc loadable packages deploy unit soak bench clean

TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
# Of the demos and packages: release or dev.
PROFILE ?= release
# Where the demo listens; with DEMO_ONCE=1 it is driven by curl instead, and ends.
PORT ?= 8080
DEMO_ONCE ?=
# What is built for the cities, if not they alone: everything together takes no longer where the tests are built afterwards.
WITH ?=
# For every cargo command; CI passes --locked.
CARGO_FLAGS ?=
# Of the benchmark: which of its sections (write read commit service cold cost).
BENCH ?= write read

built = $(TARGET)/$(if $(filter dev,$(PROFILE)),debug,release)

# The extension is always built by itself. Together with the others cargo would unify the features of the
# crate they share, and the extension would carry a second SQLite into its host.
others := --workspace --exclude sqlite-gcs-loadable

# Most tests wait most of the time, so more of them than there are cores run side by side.
export RUST_TEST_THREADS ?= 4

# No look-up of credentials may leave the machine while tests and benchmarks run.
export GCE_METADATA_HOST := 127.0.0.1:1
export GCE_METADATA_IP := 127.0.0.1:1
export GCE_METADATA_ROOT := 127.0.0.1:1
export SQLITE_GCS_TEST_LITESTREAM := $(CURDIR)/.venv/bin/litestream
export SQLITE_GCS_TEST_FAKE_GCS := $(CURDIR)/.venv/bin/fake-gcs-server

help: ## Shows this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: cities ## The cities, then the guestbook at http://localhost:8080 (PORT=) on a local bucket, and what to try with it
	cargo build $(CARGO_FLAGS) --profile $(PROFILE) --package guestbook
	@PORT=$(PORT) examples/guestbook/demo $(built)/guestbook $(TARGET)/demo$(if $(DEMO_ONCE),-once once)

cities: ## Loads 170,000 cities into a local bucket, forgets the local files, opens cold, asks questions
	@echo '== building (the first time takes minutes)'
	cargo build $(CARGO_FLAGS) --profile $(PROFILE) $(or $(WITH),--package cities)
	cargo build $(CARGO_FLAGS) --profile $(PROFILE) --package sqlite-gcs-loadable
	@rm -rf $(TARGET)/cities-demo && mkdir -p $(TARGET)/cities-demo/bucket
	@export SQLITE_GCS_BUCKET=file://$(TARGET)/cities-demo/bucket; \
	echo '== writing through file:cities.db?vfs=gcs'; \
	$(built)/cities load $(TARGET)/cities-demo/cities.db; \
	echo '== throwing the local files away'; \
	rm -r $(TARGET)/cities-demo/cities.db*; \
	echo '== opening cold, in a new process'; \
	$(built)/cities ask $(TARGET)/cities-demo/cities.db
	@printf '\nTo go on with the sqlite3 shell:\n\n'
	@printf '  export SQLITE_GCS_BUCKET=file://%s\n' $(TARGET)/cities-demo/bucket
	@printf '  sqlite3 :memory: -cmd ".load %s" \\\n' $(built)/libsqlite_gcs.so
	@printf '                   -cmd ".open file:%s?vfs=gcs"\n\n' $(TARGET)/cities-demo/cities.db
	@printf '  sqlite> SELECT name FROM city ORDER BY population DESC LIMIT 10;\n'
	@printf '  sqlite> PRAGMA gcs_status;\n'

test: setup fmt lint doc loadable ## Everything that must hold before a change lands
	@$(MAKE) --no-print-directory demo PROFILE=dev DEMO_ONCE=1 WITH='$(others)'
	@$(MAKE) --no-print-directory packages deploy PROFILE=dev
	@for example in python node django; do examples/drive.py $$example --install; done
	@export SQLITE_GCS_TEST_EXTENSION=$(TARGET)/debug/libsqlite_gcs.so; \
	export SQLITE_GCS_TEST_PACKAGES=$(TARGET)/debug/packages SQLITE_GCS_TEST_GUESTBOOK=$(TARGET)/debug/guestbook; \
	CARGO_TARGET_DIR=$(TARGET) tests/run $(CARGO_FLAGS) $(others)

setup: ## Fetches what tests, packages and benchmarks need: fake-gcs-server, litestream, zig; Debian's sqlite3, python3, chromium
	@tests/setup

fmt: ## Checks the formatting
	cargo fmt --all --check

lint: ## Clippy on everything, warnings are errors
	cargo clippy $(CARGO_FLAGS) $(others) --all-targets -- -D warnings
	cargo clippy $(CARGO_FLAGS) --package sqlite-gcs-loadable -- -D warnings

doc: ## Builds the documentation, warnings are errors
	RUSTDOCFLAGS='-D warnings' cargo doc $(CARGO_FLAGS) $(others) --no-deps

loadable: ## Builds the extension, libsqlite_gcs.so, for the tests
	cargo build $(CARGO_FLAGS) --package sqlite-gcs-loadable

packages: setup ## Builds the extension and the drop-in libsqlite3.so.0 for glibc 2.28 on, the Python wheel and the npm package
	@CARGO_FLAGS='$(CARGO_FLAGS)' packages/build $(PROFILE)

deploy: setup ## Checks the files of deploy/, and carries out the Dockerfile's build stage
	@deploy/check
	@CARGO_TARGET_DIR=$(TARGET) deploy/steps --arg PROFILE=$(PROFILE)

unit: ## The tests that need nothing but Rust
	cargo test $(CARGO_FLAGS) --package sqlite-gcs --package cities

soak: setup loadable ## The long checks: a minute of fuzzing (needs a C++ compiler), 100,000 seeds of the protocol, and what the tests ignore
	fuzz/run 60
	SQLITE_GCS_SEEDS=100000 cargo test $(CARGO_FLAGS) $(others) --lib no_seed_violates -- --nocapture
	@export SQLITE_GCS_TEST_EXTENSION=$(TARGET)/debug/libsqlite_gcs.so; \
	CARGO_TARGET_DIR=$(TARGET) tests/run --at-once 1 $(CARGO_FLAGS) $(others) -- --ignored

bench: setup ## Measures beside plain SQLite and Litestream; table on the terminal, charts in target/bench
	@tests/setup bench
	@$(if $(filter service,$(BENCH)),cargo build $(CARGO_FLAGS) --release --package guestbook)
	cargo run $(CARGO_FLAGS) --release --package sqlite-gcs-bench -- --out $(TARGET)/bench $(BENCH)

clean: ## Removes what was built
	cargo clean
