"""Parses expositions with prometheus_client.

Reads a JSON object per line, {"parser": "openmetrics" or "text", "text": the document}, and answers each with a line:
{"families": [...]} or {"error": why it was refused}. Values are printed as text, for JSON has neither NaN nor infinity.
"""

import json
import sys

from prometheus_client import parser as text
from prometheus_client.openmetrics import parser as openmetrics

PARSERS = {
    "openmetrics": openmetrics.text_string_to_metric_families,
    "text": text.text_string_to_metric_families,
}


def exemplar(sample):
    it = sample.exemplar
    return it and [it.labels, repr(it.value), repr(float(it.timestamp))]


def answer(request):
    try:
        families = list(PARSERS[request["parser"]](request["text"]))
    except Exception as why:  # Whatever a parser raises means that it refused.
        return {"error": f"{type(why).__name__}: {why}"}
    return {
        "families": [
            {
                "name": family.name,
                "type": family.type,
                "help": family.documentation,
                "unit": family.unit,
                "samples": [[s.name, s.labels, repr(s.value), exemplar(s)] for s in family.samples],
            }
            for family in families
        ]
    }


sys.stdin.reconfigure(encoding="utf-8")
for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))))
