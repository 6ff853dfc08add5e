"""The icon of the worker in RunPod's Hub: a framed picture of a sun over hills.

`python -m qwen_deploy.hub_icon` draws it. Knows nothing of the Hub's other files.
"""

from typing import TYPE_CHECKING

from .session import ROOT

if TYPE_CHECKING:
    from PIL.Image import Image

ICON = ROOT / ".runpod/icon.png"
SIDE = 256  # pixels
SMOOTHING = 4  # drawn so many times larger, and made smaller: Pillow draws edges without smoothing
PAPER, SKY, SUN, HILL, NEAR_HILL = "#4c2a85", "#fde7c5", "#ff8f3f", "#8a63d2", "#6b3fb8"


def draw_icon() -> "Image":
    """An opaque square of `SIDE` pixels."""
    from PIL import Image, ImageDraw

    side = SIDE * SMOOTHING
    icon = Image.new("RGB", (side, side), PAPER)
    picture = Image.new("RGB", (side, side), SKY)
    draw = ImageDraw.Draw(picture)

    def scaled(*coordinates: float) -> list[float]:
        return [coordinate * SMOOTHING for coordinate in coordinates]

    draw.ellipse(scaled(140, 62, 190, 112), fill=SUN)
    draw.polygon(scaled(14, 232, 98, 96, 182, 232), fill=HILL)
    draw.polygon(scaled(92, 232, 168, 134, 244, 232), fill=NEAR_HILL)
    frame = Image.new("L", (side, side), 0)
    ImageDraw.Draw(frame).rounded_rectangle(scaled(36, 36, 220, 220), radius=26 * SMOOTHING, fill=255)
    icon.paste(picture, mask=frame)
    return icon.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    draw_icon().save(ICON, optimize=True)
