"""All that passes between ranks."""

from sdtree.wire.collectives import Traffic as Traffic
from sdtree.wire.collectives import forced as forced
from sdtree.wire.collectives import record as record
