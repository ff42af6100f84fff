"""Listings, by the name that they had."""

from sdtree.look.listing import Listing as Listing
from sdtree.look.listing import show as show
