#!/usr/bin/env bash
# Prometheus 3.5.3 as Debian (unstable) builds it has no OTLP receiver: `--web.enable-otlp-receiver`, which every Prometheus since 3.0 has, is an unknown
# flag that ends the program, `--help` does not list it, and POST /api/v1/otlp/v1/metrics is 404, as if the path had never been. Remote write is there.
#
# Seen: Error parsing command line arguments: unknown long flag '--web.enable-otlp-receiver'
#       otlp 404, remote write 204 (an empty request, snappy-encoded)
# Source: Debian package prometheus (unstable).
set -euo pipefail

work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
cd "$work"

mirror=$({ cat /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null || true; } |
    sed -n 's/^URIs: *//p; s/^deb \(\[[^]]*\] \)\?\([^ ]*\) .*/\2/p' | head -n 1)
mkdir -p lists/partial cache/archives/partial
echo "deb [trusted=yes] $mirror unstable main" >unstable.list
apt=(-q -o "Dir::Etc::sourcelist=$work/unstable.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root)
apt-get "${apt[@]}" update >/dev/null
apt-get "${apt[@]}" download prometheus >/dev/null 2>&1
dpkg-deb -x prometheus_*.deb unpacked
prometheus=unpacked/usr/bin/prometheus
"$prometheus" --version 2>&1 | head -n 1
echo "global: {}" >prometheus.yml

refused=$("$prometheus" --config.file=prometheus.yml --web.enable-otlp-receiver 2>&1 || true)
echo "$refused" | head -n 1
listed=$("$prometheus" --help 2>&1 | grep -c otlp-receiver || true)

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$prometheus" --config.file=prometheus.yml --storage.tsdb.path=data --web.listen-address="127.0.0.1:$port" --web.enable-remote-write-receiver >log 2>&1 &
server=$!
for _ in $(seq 100); do curl -sf "http://127.0.0.1:$port/-/ready" >/dev/null && break || sleep 0.1; done
post() { curl -s -o /dev/null -w '%{http_code}' -X POST -H "content-type: application/x-protobuf" "$@"; }
otlp=$(post --data-binary '' "http://127.0.0.1:$port/api/v1/otlp/v1/metrics")
# Nothing, in snappy: a length of 0.
written=$(printf '\0' | post -H "content-encoding: snappy" --data-binary @- "http://127.0.0.1:$port/api/v1/write")
echo "otlp $otlp, remote write $written"
[ "$listed" = 0 ] && [ "$otlp" = 404 ] && [ "$written" = 204 ] && grep -q "unknown long flag '--web.enable-otlp-receiver'" <<<"$refused"
