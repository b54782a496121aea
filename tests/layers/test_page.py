"""The page's table of presets is what the presets give."""

from __future__ import annotations

import pytest

import layer_table


@pytest.mark.parametrize("name", ["AlexNet", "GoogLeNet", "ResNet-50", "ConvNeXt-T"])
def test_the_table_of_presets_is_up_to_date(name):
    assert layer_table.row(name) in layer_table.FILE.read_text().splitlines()
