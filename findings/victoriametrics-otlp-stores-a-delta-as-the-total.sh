#!/usr/bin/env bash
# VictoriaMetrics 1.145.0 (Debian unstable): an OTLP sum of temporality delta is answered 200 and stored as it came. Three deltas of 5 read back as
# 5, 5, 5 under the counter's name, so `increase()` over them is 5, where 15 was counted. Nothing in the answer nor in the log says so. The unit ("s") goes
# into the name only with `-opentelemetry.usePrometheusNaming`, and then the counter gets `_total`, too.
#
# Seen: busy: 5 5 5 increase 5
#       with -opentelemetry.usePrometheusNaming: busy_seconds_total
# Source: Debian package victoria-metrics (unstable), PyPI opentelemetry-proto 1.45.2.
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
apt-get "${apt[@]}" download victoria-metrics >/dev/null 2>&1
dpkg-deb -x victoria-metrics_*.deb unpacked
echo "package: $(echo victoria-metrics_*.deb)"

python3 -m venv venv
venv/bin/pip install --quiet opentelemetry-proto==1.45.2

cat >send.py <<'PYTHON'
import sys, time, urllib.request
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_DELTA

now = int(time.time()) - 60
for step in range(3):
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="busy", unit="s")
    metric.sum.is_monotonic, metric.sum.aggregation_temporality = True, AGGREGATION_TEMPORALITY_DELTA
    point = metric.sum.data_points.add(as_int=5)
    point.start_time_unix_nano = (now + 10 * step) * 10**9
    point.time_unix_nano = (now + 10 * step + 10) * 10**9
    post = urllib.request.Request(sys.argv[1], request.SerializeToString(), {"content-type": "application/x-protobuf"})
    print("answered", urllib.request.urlopen(post).status)
PYTHON

run() {
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    unpacked/usr/bin/victoria-metrics -storageDataPath="data-$port" -httpListenAddr="127.0.0.1:$port" "$@" >"log-$port" 2>&1 &
    server=$!
    for _ in $(seq 100); do curl -sf "http://127.0.0.1:$port/health" >/dev/null && break || sleep 0.1; done
    venv/bin/python send.py "http://127.0.0.1:$port/opentelemetry/v1/metrics"
    curl -sf "http://127.0.0.1:$port/internal/force_flush" >/dev/null
}
stop() { kill "$server"; wait "$server" 2>/dev/null || true; server=; }

run
values=$(curl -sf "http://127.0.0.1:$port/api/v1/export" --data-urlencode 'match[]=busy' | python3 -c 'import json, sys; print(*json.loads(sys.stdin.readline())["values"])')
increase=$(curl -sf "http://127.0.0.1:$port/api/v1/query" --data-urlencode 'query=increase(busy[5m] offset 1s)' --data-urlencode "nocache=1" |
    python3 -c 'import json, sys; r = json.load(sys.stdin)["data"]["result"]; print(r[0]["value"][1] if r else "none")')
echo "busy: $values increase $increase"
stop
run -opentelemetry.usePrometheusNaming
names=$(curl -sf "http://127.0.0.1:$port/api/v1/label/__name__/values" | python3 -c 'import json, sys; print(*json.load(sys.stdin)["data"])')
echo "with -opentelemetry.usePrometheusNaming: $names"
stop
[ "$values" = "5 5 5" ] && [ "$increase" = 5 ] && [ "$names" = busy_seconds_total ]
