"""The fields of a job that are about the picture it begins with or keeps a part of, and what they mean together.

Every task that draws has them; `request.py` says which task takes how many pictures. They know nothing of sizes.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from ..errors import BeyondSchema
from .expansion import ExpandBy
from .field_types import BrokenRule, ImageText, MaskText, whole_number
from .values import ReadNumber, ReadWhole

MASK_FIELDS = ("mask_image", "mask_from", "mask_crop", "mask_padding", "mask_blend")
PART_FIELDS = (*MASK_FIELDS, "expand", "fit")  # say which part is drawn, as background_replacement does itself
MAX_PADDING = 4096  # pixels around a mask


class PictureFields(BaseModel, frozen=True):
    """Without a picture each of them is refused, but for a strength, which `parsing.py` leaves out."""

    images: tuple[ImageText, ...] = ()
    mask_image: MaskText | None = None
    # Whether the mask's transparent or its white pixels are repainted; None where its colours say it by themselves.
    mask_from: Annotated[Literal["alpha", "white"], Field(description="'alpha' or 'white'")] | None = None
    # Whether the region around the mask is drawn alone, and the rest of the picture stays as it is in its own size.
    # None: where the picture is larger than what the model draws.
    mask_crop: Annotated[bool, Field(description="true or false")] | None = None
    mask_padding: Annotated[int, whole_number(0, MAX_PADDING), ReadWhole] | None = None
    mask_blend: Annotated[Literal["feather", "soft"], Field(description="'feather' or 'soft'")] | None = None
    strength: Annotated[float, Field(gt=0, le=1, description="a number above 0 and at most 1"), ReadNumber] = 1.0
    expand: ExpandBy = None
    fit: Annotated[Literal["expand"], Field(description="'expand'")] | None = None

    @model_validator(mode="after")
    def require_pictures_for_their_fields(self) -> Self:
        """Refuse what is said of a picture that is not there, or of one of several."""
        count, sentence = len(self.images), ""
        idle = [name for name in MASK_FIELDS if getattr(self, name) is not None]
        if self.mask_from and not self.mask_image:
            sentence = "mask_from says how mask_image is read, and mask_image is not given"
        elif idle and not (self.mask_image or self.grows):
            sentence = f"{idle[0]} says how mask_image is used, and mask_image is not given"
        elif not count and (named := self.fields_of_part):
            sentence = f"{named[0]} is about an input picture, and none is given: send image"
        elif count > 1 and (self.mask_image or self.strength < 1):
            sentence = f"mask_image and strength below 1 work on one image, not {count}"
        elif count > 1 and self.grows:
            sentence = f"{'expand' if self.expand else 'fit'} works on one image, not {count}"
        elif self.mask_padding is not None and self.mask_crop is False:
            sentence = "mask_padding says how much around the mask is cut out, and mask_crop is false"
        if sentence:
            raise BrokenRule(sentence, BeyondSchema.TOGETHER)
        return self

    @property
    def fields_of_part(self) -> list[str]:
        """The fields of the job that say which part of the input picture is repainted."""
        return [name for name in ("mask_image", "expand", "fit") if getattr(self, name)]

    @property
    def grows(self) -> bool:
        """Whether the input picture gets a larger canvas."""
        return bool(self.expand or self.fit)

    @property
    def is_masked(self) -> bool:
        """Whether a part of the input picture is kept as it is, pixel by pixel."""
        return bool(self.mask_image or self.keeps_size)

    @property
    def keeps_size(self) -> bool:
        """Whether what is kept of the input picture keeps its own pixels, however large it is."""
        return self.grows

    @property
    def has_soft_mask(self) -> bool:
        """Whether the mask's greys say how the drawing fades into what is kept."""
        return self.mask_blend == "soft"

    @property
    def starts_from_picture(self) -> bool:
        """Whether the drawing begins with its input picture, or keeps a part of it."""
        return self.is_masked or bool(self.images and self.strength < 1)

    @property
    def uses_pictures(self) -> bool:
        """Whether the result depends on the input pictures; generate leaves nothing of one at strength 1."""
        return self.starts_from_picture


class WithoutPart(BaseModel, frozen=True):
    """A task that says itself which part of its picture is drawn, and takes none of `PART_FIELDS`."""

    mask_image: None = None
    mask_from: None = None
    mask_crop: None = None
    mask_padding: None = None
    mask_blend: None = None
    expand: None = None
    fit: None = None
