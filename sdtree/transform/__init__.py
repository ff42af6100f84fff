"""A transform is a value: stages, windows, and what runs them."""

from sdtree.transform.transform import Transform as Transform
from sdtree.transform.transform import chain as chain
from sdtree.transform.transform import identity as identity
