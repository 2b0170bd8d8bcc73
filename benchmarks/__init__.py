"""Figures: what Headwater is measured by."""

import service as service  # first of all: it tells torch's threads how to wait, which must be before torch is imported
