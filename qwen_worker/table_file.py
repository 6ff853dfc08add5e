"""The modulation table of a prepared checkpoint: a file with all rows, in place of the weights that they come from.

5.5 GB for 20B where the weights are 13.6, and nothing left to compute. Imports torch: import it inside functions.
"""

from pathlib import Path

from diffusers import QwenImageTransformer2DModel

from .checkpoint_files import in_file
from .errors import LoadError
from .modulation import StoredRows, Table, shape_of_rows
from .weight_reader import WeightReader
from .weight_writer import save

FILE = "modulation.safetensors"


def exists(folder: Path) -> bool:
    return (folder / FILE).is_file()


def write(table: Table, folder: Path) -> None:
    """Write the rows of a table of all timesteps."""
    save({"rows": table.source.rows}, folder / FILE)


def read(transformer: QwenImageTransformer2DModel, folder: Path, threads: int) -> Table:
    """The table, its rows in host memory from where a card fetches."""
    tensors = in_file(folder / FILE, FILE)
    shapes, wanted = [one.shape for one in tensors], shape_of_rows(transformer)
    if shapes != [wanted]:
        raise LoadError(f"{FILE} holds the shapes {shapes} where the transformer asks for {wanted}")
    with WeightReader(tensors, "cpu", threads, pinned=transformer.device.type == "cuda") as reader:
        rows = reader.take(tensors[0].name)
        reader.verify()
    return Table(transformer, StoredRows(rows))
