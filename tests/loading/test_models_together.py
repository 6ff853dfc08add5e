"""The endpoint's models, ControlNet and transformers from elsewhere as they are together: who has what of whom."""

import pytest

from qwen_worker.loading.catalogue import Catalogue
from qwen_worker.settings import Settings

LAYERED = "Qwen/Qwen-Image-Layered"


@pytest.mark.parametrize("other", [{}, {"QWEN_EDIT_MODEL": "Qwen/Qwen-Image"}])
@pytest.mark.parametrize("transformer", [None, "ORG/NAME/file.safetensors"])
def test_a_layered_model_keeps_its_own_transformer_whatever_stands_for_the_others(other, transformer):
    settings = Settings(QWEN_LAYERED_MODEL=LAYERED, QWEN_IMAGE_TRANSFORMER=transformer, **other)
    catalogue = Catalogue(settings)
    assert catalogue.transformer_for("generate") == transformer
    assert catalogue.transformer_for("layers") is None
    assert catalogue.locate("layers").name == LAYERED
