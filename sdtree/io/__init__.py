"""Files: checkpoints of torch and of safetensors, read, written and converted."""

from sdtree.io.converting.by_window import convert_file as convert_file
from sdtree.io.pickles.foreign import Foreign as Foreign
from sdtree.io.reading import Opened as Opened
from sdtree.io.reading import load as load
from sdtree.io.reading import metadata as metadata
from sdtree.io.reading import open_file as open_file
from sdtree.io.saving import save as save
