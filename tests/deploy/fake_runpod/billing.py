"""What RunPod has billed: amounts by endpoint or volume and day, added up into the answers of its billing API."""

import datetime

from .document import problem, violations

TODAY = datetime.date(2026, 6, 30)
# Of each product: the field that names what was billed, the metadata's count of those, the parts of an amount.
PRODUCTS = {
    "serverless": ("serverlessId", "uniqueServerlessCount", ("gpuAmount", "cpuAmount", "diskAmount", "feeAmount")),
    "network-volumes": ("networkVolumeId", "uniqueNetworkVolumeCount", ("standardAmount", "highPerformanceAmount")),
}


class Bills:
    """`records` are (product, id, days ago, amounts of the product's parts in order)."""

    def __init__(self):
        self.records: list[tuple[str, str, int, tuple[float, ...]]] = []

    def add(self, product, name, days_ago, *parts):
        self.records.append((product, name, days_ago, parts))

    def answer(self, product, query):
        field, count, part_names = PRODUCTS[product]
        if refused := refusal(query, field):
            return 422, problem("Unprocessable Entity", 422, "Request validation failed.", refused)
        days, wanted = int(query["lastN"]), query.get(field)
        records = [
            record(field, name, days_ago, dict(zip(part_names, parts, strict=True)))
            for own, name, days_ago, parts in self.records
            if own == product and days_ago < days and wanted in (None, name)
        ]
        names = ("totalAmount", *part_names)
        totals = {name: round(sum(one[name] for one in records), 6) for name in names}
        asked = {**day(days - 1), "endTime": day(0)["endTime"], "bucketSize": "day", field: wanted}
        metadata = {"query": asked, "recordCount": len(records), "totals": totals}
        metadata[count] = len({one[field] for one in records})
        return 200, {"records": records, "metadata": metadata}


def refusal(query, field):
    """What is wrong with the parameters, as the document has them."""
    unknown = set(query) - {"bucketSize", "lastN", "startTime", "endTime", field}
    wrong = [f"query.{name}: not allowed" for name in unknown]
    wrong += violations("BillingBucketSize", query.get("bucketSize", "day"))
    if not query.get("lastN", "").isdigit() or int(query["lastN"]) < 1:
        wrong.append("query.lastN: must be an integer of at least 1")
    if {"startTime", "endTime"} & set(query):
        wrong.append("query.lastN: mutually exclusive with startTime and endTime")
    return wrong


def day(days_ago):
    start = TODAY - datetime.timedelta(days=days_ago)
    return {"startTime": f"{start}T00:00:00Z", "endTime": f"{start + datetime.timedelta(days=1)}T00:00:00Z"}


def record(field, name, days_ago, parts):
    return {**day(days_ago), field: name, "totalAmount": round(sum(parts.values()), 6), **parts}
