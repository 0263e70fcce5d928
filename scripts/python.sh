#!/bin/sh
# The Python package from this checkout.
#
#   scripts/python.sh build [--release]   builds the extension module and puts it beside python/metricbus/*.py, so that
#                                         PYTHONPATH=python is all that it takes to import it
#   scripts/python.sh test [OPTION…]      builds it and runs python/tests, with each Python there is that it supports
#                                         (options go to pytest)
#   scripts/python.sh bench [OPTION…]     builds it in release mode and measures it beside its peers
#   scripts/python.sh wheel               builds the wheel, in target/wheels
#
# scripts/setup.sh python gets what this needs.
set -eu

cd "$(dirname "$0")/.."

# Those which a machine may have beside its first one, on the PATH, from pyenv or from scripts/cpython.sh; the package supports
# 3.11 and later.
newer() {
    for version in 3.12 3.13 3.14 3.14t 3.15 3.15t; do
        for python in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/${version%t}".*/bin/"python$version" \
            "$PWD/.tools/cpython-$version/bin/python$version"; do
            if "$python" -c 'import venv' >/dev/null 2>&1; then
                echo "$python"
                break
            fi
        done
    done
}

# One without the interpreter's lock does not load what is built for all others.
build_for() {
    suffix=$("$1" -c 'import sysconfig as s; print(s.get_config_var("EXT_SUFFIX") if s.get_config_var("Py_GIL_DISABLED") else "")')
    [ -n "$suffix" ] || return 0
    folder=${CARGO_TARGET_DIR:-target}/${1##*/}
    PYO3_PYTHON=$(command -v "$1") cargo build --quiet --package metricbus-python --target-dir "$folder" &&
        cp "$folder/debug/lib_metricbus.so" "python/metricbus/_metricbus$suffix"
}

main() {
    step=${1:-}
    [ $# = 0 ] || shift
    case "$step" in
    build) build "$@" ;;
    test)
        build
        run_tests "$@"
        ;;
    bench)
        build --release
        PYTHONPATH=python .venv/bin/python python/benches/side_by_side.py "$@"
        ;;
    wheel) .venv/bin/maturin build --release --manifest-path python/Cargo.toml --out target/wheels "$@" ;;
    *)
        sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
    esac
}

build() {
    cargo build --quiet --package metricbus-python "$@"
    folder=${CARGO_TARGET_DIR:-target}/debug
    [ "${1:-}" != --release ] || folder=${CARGO_TARGET_DIR:-target}/release
    for library in "$folder/lib_metricbus.so" "$folder/lib_metricbus.dylib"; do
        if [ -e "$library" ]; then
            # A new file, not the old one written over: a process that has it loaded goes on with that.
            cp "$library" python/metricbus/_metricbus.abi3.so.new
            mv python/metricbus/_metricbus.abi3.so.new python/metricbus/_metricbus.abi3.so
            return 0
        fi
    done
    echo "no library in $folder, though it was built" >&2
    return 1
}

run_tests() {
    failed=0
    echo "pytest with $(.venv/bin/python --version)"
    (cd python && ../.venv/bin/python -m pytest "$@") || failed=$?
    for python in $(newer); do
        venv=.tools/venv-${python##*/}
        # Without pip, which Debian's own don't have: that of the first one installs for all.
        if ! [ -x "$venv/bin/pytest" ] && ! { "$python" -m venv --without-pip "$venv" &&
            .venv/bin/python -m pip --python "$venv/bin/python" install --quiet \
                -r scripts/requirements.txt -r python/tests/requirements.txt; }; then
            echo "$python is here, but not all that the tests need could be installed for it, so they do not run with it"
            continue
        fi
        build_for "$python" || failed=$?
        echo "pytest with $("$python" --version)"
        (cd python && "../$venv/bin/python" -m pytest -m "not once" "$@") || failed=$?
    done
    return "$failed"
}

main "$@"
