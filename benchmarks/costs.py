"""What a picture and an edit cost on each of RunPod's pools: computed, by arithmetic alone, and marked so.

A drawing of 50 guided steps at 1024x1024 is 100 passes through the transformer. Their time on a card is taken from the
card's dense bfloat16 rate and the share of it that diffusers reaches on an H100 (18.5 s a picture, measured by
cache-dit's authors); smaller cards have been seen to reach more, so that theirs are likelier to be too high. Loads,
transfers from RAM, quantized products and idle seconds are left out. With live prices and measured seconds:
`python deploy_qwen.py cost`.
"""

PASSES = 2 * 50
TFLOP_A_PASS = 70  # linear layers 57, attention 13: 4,096 latents and about a hundred tokens
H100_SECONDS, H100_RATE = 18.5, 989
SHARE = PASSES * TFLOP_A_PASS / H100_SECONDS / H100_RATE
EDIT = 51.5 / 20.0  # an edit sees the input's latents too: vLLM-Omni's seconds of both on an H200

# RunPod's serverless price list of June 2026, in dollars an hour; a card of each pool with its dense bfloat16 TFLOP/s.
POOLS = {
    "AMPERE_16": (0.58, "RTX A4000", 76.7),
    "AMPERE_24": (0.68, "RTX A5000", 111),
    "ADA_24": (1.12, "RTX 4090", 165),
    "AMPERE_48": (1.22, "A40", 150),
    "ADA_48_PRO": (1.91, "L40S", 362),
    "AMPERE_80": (2.74, "A100", 312),
    "BLACKWELL_96": (4.00, "RTX PRO 6000", 504),
    "ADA_80_PRO": (4.18, "H100", 989),
    "HOPPER_141": (5.58, "H200", 989),
    "BLACKWELL_180": (8.64, "B200", 2250),
}


def add_options(parser) -> None:
    parser.add_argument("--steps", type=int, default=50, help="of a drawing (default: %(default)s)")


def run(options) -> tuple[list[dict], dict]:
    rows = []
    for pool, (price, card, rate) in POOLS.items():
        seconds = options.steps / 50 * PASSES * TFLOP_A_PASS / (rate * SHARE)
        rows.append({
            "pool": pool, "card": card, "$/h": f"{price:.2f}",
            "picture s": round(seconds), "$ a picture": f"{price / 3600 * seconds:.3f}",
            "edit s": round(seconds * EDIT), "$ an edit": f"{price / 3600 * seconds * EDIT:.3f}",
        })  # fmt: skip
    return rows, {"basis": "computed", "size": 1024, "steps": options.steps, "prices of": "2026-06"}
