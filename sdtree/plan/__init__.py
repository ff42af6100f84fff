"""What a transform will do, counted without data."""

from sdtree.plan.explaining import Plan as Plan
from sdtree.plan.explaining import PlanRow as PlanRow
from sdtree.plan.explaining import Spread as Spread
from sdtree.plan.explaining import explain as explain
