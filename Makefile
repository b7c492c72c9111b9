# Verbs only: each calls cargo, image/ or a script. On a fresh Debian 12 as root, `make demo` and `make test` do everything.

CARGO := scripts/cargo
# zstd level of the initramfs: 19 to ship, 3 when it only has to be built quickly (which demo and test do).
LEVEL ?= 19
# cloud (virtual machines) or generic (real ones).
FLAVOUR ?= cloud

# Where `make install` puts the server, its boot directory, man pages, completions and the systemd unit.
PREFIX ?= /usr
DESTDIR ?=

MINUTES ?= 10

# Cargo profile of what is built: release to ship, quick for the demo, dev for tests. /init keeps to the first two: it has to fit
# into small machines.
PROFILE ?= release
INIT_PROFILE ?= $(PROFILE)
TARGET = target/$(PROFILE:dev=debug)
# What cargo builds, and the features of it.
PARTS ?= -p server -p image -p qemu-tests
FEATURES ?=
# Where the server goes; the demo's, which lacks `ezio image pull`, goes elsewhere.
PROGRAM ?= build/ezio

.PHONY: all setup build image install demo test corpus bench load fuzz check docs clean

all: build

# Installs what is missing: Debian packages and a way to build for musl.
setup:
	scripts/setup

# The server, build/ezio, and the RAM system's program, build/init.
build: setup
	$(CARGO) build --profile $(PROFILE) --locked $(PARTS) $(FEATURES)
	install -D $(TARGET)/ezio $(PROGRAM)
	PROFILE=$(INIT_PROFILE) scripts/build-init $(TARGET)/ezio-image

# One boot directory, build/boot/$(FLAVOUR).
image: build
	$(TARGET)/ezio-image build --flavour $(FLAVOUR) --level $(LEVEL) --out build/boot/$(FLAVOUR)

# Installs what `make image FLAVOUR=generic` has built, or another flavour.
install: into := $(DESTDIR)$(PREFIX)
install:
	@test -d build/boot/$(FLAVOUR) || { echo "build/boot/$(FLAVOUR) is not there: run 'make image FLAVOUR=$(FLAVOUR)' first" >&2; exit 1; }
	build/ezio generate build/generated
	install -D -m 755 build/ezio $(into)/bin/ezio
	install -d $(into)/lib/ezio/boot $(into)/share/man/man1
	install -m 644 build/boot/$(FLAVOUR)/* $(into)/lib/ezio/boot
	install -m 644 build/generated/man/*.1 $(into)/share/man/man1
	install -D -m 644 build/generated/completions/ezio.bash $(into)/share/bash-completion/completions/ezio
	install -D -m 644 build/generated/completions/_ezio $(into)/share/zsh/site-functions/_ezio
	install -D -m 644 build/generated/completions/ezio.fish $(into)/share/fish/vendor_completions.d/ezio.fish
	sed 's|@PREFIX@|$(PREFIX)|' dist/ezio.service >build/generated/ezio.service
	install -D -m 644 build/generated/ezio.service $(into)/lib/systemd/system/ezio.service

# A room of machines, from power-on to the clone's login prompt.
demo:
	$(MAKE) --no-print-directory image FLAVOUR=cloud LEVEL=3 PROFILE=quick FEATURES=--no-default-features PROGRAM=build/quick/ezio
	EZIO_BIN=build/quick/ezio target/quick/rack demo

# Every unit, property and rack test; the last line of the output counts them.
test:
	scripts/test

# Captures, exports and restores every disk image in DIR (make corpus DIR=…) and compares: a row a file. The sources of
# util-linux (tests/ts/blkid) and e2fsprogs (tests) have some hundred.
corpus: setup
	@test -d "$(DIR)" || scripts/corpus "$(DIR)"
	$(CARGO) build --release --locked -p server
	install -D target/release/ezio build/ezio
	scripts/corpus "$(DIR)"

# Our swarm beside udpcast, aria2 and libtorrent on a rack of shaped links, and capture beside partclone; an hour.
# Figures in build/bench.
bench: setup
	$(CARGO) build --release --locked -p server -p bench
	target/release/bench capture
	target/release/bench all

# What `ezio serve` holds: five hundred machines at once, four thousand that report, a hostile card; some minutes. Writes
# docs/load.md. For another program than a release build: EZIO_BIN=...
load: setup
	$(CARGO) build --release --locked -p bench
	test -n "$(EZIO_BIN)" || $(CARGO) build --release --locked -p server
	EZIO_BIN=$(or $(EZIO_BIN),target/release/ezio) target/release/bench load --document docs/load.md

# Random inputs for every parser, for MINUTES.
fuzz: setup
	scripts/fuzz $(MINUTES)

# What `make test` asks of the code before it tests it.
check: setup
	scripts/check

# Writes the parts of the documents that come from the code.
docs:
	scripts/docs

clean:
	rm -rf build target
