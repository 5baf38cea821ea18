# What one does with this work tree. `make` alone lists it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/sbin:/sbin
CARGO ?= cargo
# Where cargo puts what it builds.
TARGET = $(or $(CARGO_TARGET_DIR),target)
RELEASE = $(TARGET)/release
PREFIX ?= /usr/local
DESTDIR ?=
UNITDIR ?= $(PREFIX)/lib/systemd/system
SYSUSERSDIR ?= $(PREFIX)/lib/sysusers.d
# How long the open-ended ones go on.
FUZZ_SECONDS ?= 300
SOAK_MINUTES ?= 60

.PHONY: help
help: ## this list
	@echo "Targets (all of them work on a fresh clone; what is missing is installed, or named when you are not root):"
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build-deps
build-deps:
	@tools/install-build-deps build

.PHONY: fuzz-deps
fuzz-deps:
	@tools/install-build-deps fuzz

.PHONY: deps
deps: ## install all that building, testing and the demo need
	@tools/install-build-deps test

.PHONY: build
build: build-deps ## build sheep and dog in target/release
	$(CARGO) build --locked --release --package node --bins

.PHONY: demo
demo: deps build ## a virtual machine boots from a volume, and loses nothing when sheep is killed under it
	@$(CARGO) run --locked --quiet --release --package e2e --bin demo

# All that the continuous integration runs. One step a target, so that one can be run alone. What can go side by side
# does: the programs are built beside the lints and the tests, whose compilations are often down to one core; and the
# tests of the parts compute while those with real processes mostly wait for a disk, a guest or a clock. The former are
# nice, so that the latter are as fast as alone.
.PHONY: test
test: deps check-format ## all that the continuous integration runs
	@$(MAKE) build & failed=; $(MAKE) build-tests guest || failed=1; { wait $$! && [ -z "$$failed" ]; } || exit 1; \
		echo "make test: all is built after $$SECONDS s"
	@rm -rf target/failed; $(MAKE) test-unit & failed=; $(MAKE) test-e2e || failed=1; \
		{ wait $$! && [ -z "$$failed" ]; } || { tools/failed-tests; exit 1; }; \
		echo "make test: all of it passed; the tests ran for $$SECONDS s"

# Always for the whole workspace: a package alone asks for fewer features of its dependencies, and then those and all that
# builds on them are compiled once more.
.PHONY: build-tests
build-tests: check-lints check-tidy check-licences
	$(CARGO) test --locked --workspace --no-run

.PHONY: check-format
check-format:
	$(CARGO) fmt --all --check

# The virtual machine that tests and demo start.
.PHONY: guest
guest: deps
	tools/build-guest target/guest

.PHONY: check-lints
check-lints:
	$(CARGO) clippy --locked --workspace --all-targets --quiet -- -D warnings

.PHONY: check-tidy
check-tidy: ## the rules of the house that a program can check
	$(CARGO) build --locked --quiet --workspace --bin xtask
	$(TARGET)/debug/xtask tidy

# Licences, bans and sources of deny.toml are checked by check-tidy. cargo-deny, which is not packaged everywhere, looks
# into licence texts too where it is installed (`cargo install cargo-deny`).
.PHONY: check-licences
check-licences: check-tidy
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny --offline check bans licenses sources; fi

.PHONY: test-unit
test-unit: ## tests of the parts: tables, models, crash points, simulation, fuzz corpora
	@(nice -n 10 tools/run-tests parts && nice -n 10 timeout 900 $(CARGO) test --locked --workspace --doc --quiet) 2>&1 \
		| sed -u 's/^/parts: /'

.PHONY: test-e2e
test-e2e: deps build ## tests with real processes: QEMU, fio, NBD clients, kill -9
	RUST_LIB_BACKTRACE=0 tools/run-tests processes 2>&1 | sed -u 's/^/processes: /'

.PHONY: soak
soak: deps build ## the random tests with fresh seeds, for SOAK_MINUTES (60)
	SOAK_MINUTES=$(SOAK_MINUTES) tools/soak

.PHONY: fuzz
fuzz: fuzz-deps ## go on fuzzing the parsers, for FUZZ_SECONDS (300) each
	FUZZ_SECONDS=$(FUZZ_SECONDS) tools/fuzz

.PHONY: bench
bench: deps build ## measure one node and three, against qemu-storage-daemon and the device, and with 1 TiB described; see docs/performance.md
	$(CARGO) run --locked --quiet --release --package xtask -- bench one
	$(CARGO) run --locked --quiet --release --package xtask -- bench table
	$(CARGO) run --locked --quiet --release --package xtask -- bench layers
	$(CARGO) run --locked --quiet --release --package xtask -- bench cluster

.PHONY: install
install: build ## install programs, manual pages, completions and the systemd unit below DESTDIR/PREFIX
	install -D -m 755 $(RELEASE)/sheep $(DESTDIR)$(PREFIX)/bin/sheep
	install -D -m 755 $(RELEASE)/dog $(DESTDIR)$(PREFIX)/bin/dog
	install -d $(DESTDIR)$(PREFIX)/share/man/man1
	$(RELEASE)/dog man $(DESTDIR)$(PREFIX)/share/man/man1
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)$(PREFIX)/share/zsh/site-functions \
		$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
	$(RELEASE)/dog completions bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/dog
	$(RELEASE)/dog completions zsh >$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_dog
	$(RELEASE)/dog completions fish >$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/dog.fish
	install -d $(DESTDIR)$(UNITDIR)
	sed 's|@PREFIX@|$(PREFIX)|g' packaging/sheep.service >$(DESTDIR)$(UNITDIR)/sheep.service
	install -D -m 644 packaging/sheepdog.sysusers $(DESTDIR)$(SYSUSERSDIR)/sheepdog.conf

.PHONY: uninstall
uninstall: ## remove what `make install` installed; never data
	rm -f $(DESTDIR)$(PREFIX)/bin/{sheep,dog} $(DESTDIR)$(PREFIX)/share/man/man1/{sheep,dog}{,-*}.1 \
		$(DESTDIR)$(PREFIX)/share/bash-completion/completions/dog $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_dog \
		$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/dog.fish \
		$(DESTDIR)$(UNITDIR)/sheep.service $(DESTDIR)$(SYSUSERSDIR)/sheepdog.conf
