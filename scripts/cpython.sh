#!/bin/sh
# Gets CPythons that no package of this machine's Debian brings, for the tests of the Python package: scripts/python.sh runs
# them with every one that it finds here.
#
#   scripts/cpython.sh [VERSION…]   3.14 and 3.14t (without the global interpreter lock) unless told otherwise, in
#                                   .tools/cpython-VERSION
#
# Each is built from Debian's source package in a newer suite, quietly and with one job. Where the source can't be had, one with the
# lock is put together from that suite's own packages instead, with its own C library. What can't be had either way is said, with the
# reason, and is no error.
set -eu

cd "$(dirname "$0")/.."
tools=$PWD/.tools
log=$tools/cpython.log
suites="testing unstable"

main() {
    [ $# -gt 0 ] || set -- 3.14 3.14t
    mkdir -p "$tools"
    [ -e "$tools/.gitignore" ] || echo '*' >"$tools/.gitignore"
    : >"$log"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    for version in "$@"; do
        get "$version"
    done
}

say() { echo "cpython: $*"; }

reason() { grep -E '^E:|rror' "$log" | tail -n 1 | cut -c 1-200; }

get() {
    version=$1
    plain=${version%t}
    home=$tools/cpython-$version
    if [ -x "$home/bin/python$version" ] && "$home/bin/python$version" -c 'import ssl, sqlite3' 2>>"$log"; then
        say "$version is here: $("$home/bin/python$version" --version)"
        return 0
    fi
    rm -rf "$home"
    for suite in $suites; do
        if source_of "$suite" && build; then
            say "$version is built: $("$home/bin/python$version" --version)"
            return 0
        fi
    done
    say "$version could not be built: $(reason)"
    if [ "$version" = "$plain" ]; then
        for suite in $suites; do
            if unpack "$suite"; then
                say "$version is unpacked from the packages of Debian $suite: $("$home/bin/python$plain" --version)"
                return 0
            fi
        done
        say "nor unpacked: $(reason)"
    fi
    rm -rf "$home"
}

# apt-get, which sees that suite only, and knows nothing of what is installed here.
apt_of() {
    suite=$1
    shift
    lists=$work/$suite
    if ! [ -e "$lists/sources" ]; then
        mkdir -p "$lists/lists/partial" "$lists/cache/archives/partial"
        site=$(apt-get indextargets --format '$(SITE) $(CODENAME)' 'Created-By: Packages' |
            sed -n "s/ $(. /etc/os-release && echo "$VERSION_CODENAME")$//p" | head -n 1)
        for kind in deb deb-src; do
            echo "$kind [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $site $suite main"
        done >"$lists/sources.list"
        apt_get update >>"$log" 2>&1 || return 1
        mv "$lists/sources.list" "$lists/sources"
    fi
    apt_get "$@" >>"$log" 2>&1
}

apt_get() {
    list=$lists/sources.list
    [ -e "$list" ] || list=$lists/sources
    apt-get -q -y -o Dir::Etc::sourcelist="$list" -o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists="$lists/lists" \
        -o Dir::Cache="$lists/cache" -o APT::Sandbox::User=root -o Acquire::Languages=none \
        -o Acquire::http::Timeout=30 -o Acquire::Retries=1 "$@"
}

source_of() {
    rm -rf "$work/source" && mkdir "$work/source"
    (cd "$work/source" && apt_of "$1" source --download-only "python$plain") &&
        tar -x -C "$work/source" --strip-components=1 -f "$work"/source/*.orig.tar.*z 2>>"$log"
}

build() {
    options=
    [ "$version" = "$plain" ] || options=--disable-gil
    (
        cd "$work/source" &&
            nice -n 19 ./configure --prefix="$home" $options &&
            nice -n 19 make -j1 &&
            nice -n 19 make -j1 altinstall
    ) >>"$log" 2>&1 || return 1
    "$home/bin/python$version" -c 'import ssl, sqlite3' 2>>"$log"
}

# The packages, and those that they need, beside each other.
unpack() {
    rm -rf "$work/unpack" && mkdir "$work/unpack"
    (cd "$work/unpack" && apt_of "$1" download "python$plain-minimal" "libpython$plain-minimal" "libpython$plain-stdlib" \
        "python$plain-venv" libc6 libgcc-s1 libexpat1 zlib1g libssl3t64 libbz2-1.0 libffi8 liblzma5 libsqlite3-0 libuuid1 \
        libzstd1) || return 1
    for package in "$work"/unpack/*.deb; do
        dpkg-deb -x "$package" "$work/unpack/root" >>"$log" 2>&1 || return 1
    done
    mv "$work/unpack/root/usr" "$home"
    mv "$home/bin/python$plain" "$home/bin/python$plain.real"
    # It needs the C library that it was made with.
    cat >"$home/bin/python$plain" <<EOT
#!/bin/sh
home=\$(dirname "\$(dirname "\$(readlink -f "\$0")")")
loader=\$(echo "\$home"/lib/*/ld-linux-*.so.*)
exec "\$loader" --library-path "\${loader%/*}" --argv0 "\$0" "\$home/bin/python$plain.real" "\$@"
EOT
    chmod +x "$home/bin/python$plain"
    "$home/bin/python$plain" -c 'import ssl, sqlite3' 2>>"$log"
}

main "$@"
