"""A colour belongs to a method, whatever else a report holds; no two lines look the same."""

from __future__ import annotations

from analysis.looks import COLOURS, ON_DARK, looks


def test_a_method_keeps_its_colour_in_every_company():
    alone = looks([("CoT-SC", "cot")])["CoT-SC"]
    for others in (["softcot++"], ["lora", "softcot"], ["mine", "yours", "refiner"]):
        found = looks([*((key, key) for key in others), ("cot", "cot")])
        assert found["cot"].colour == alone.colour
    assert alone.colour != looks([("SoftCoT++", "softcot++")])["SoftCoT++"].colour


def test_the_first_line_of_a_method_has_its_colour_and_its_control_another():
    found = looks([("SoftCoT++", "softcot++"), ("SoftCoT++ [shuffled]", "softcot++"), ("CoT", "cot")])
    assert found["SoftCoT++"] == looks([("x", "softcot++")])["x"]
    assert len({look.colour for look in found.values()}) == 3


def test_no_two_lines_look_the_same_however_many_there_are():
    for keys in (["softcot++"] * 20, [f"mine-{k}" for k in range(20)], ["cot", "softcot"] * 10):
        found = looks([(f"line {place}", key) for place, key in enumerate(keys)])
        drawn = [(look.line["color"], look.line["linestyle"]) for look in found.values()]
        assert len(found) == len(set(drawn)) == 20


def _luminance(colour: str) -> float:
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    linear = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_colours_on_a_dark_page_stand_out_from_it():
    """A contrast of 4.5 is what WCAG asks of small text."""
    dark = _luminance("#17171a")
    assert len(ON_DARK) == len(set(COLOURS)) == 8
    assert all((_luminance(colour) + 0.05) / (dark + 0.05) > 4.5 for colour in ON_DARK)
