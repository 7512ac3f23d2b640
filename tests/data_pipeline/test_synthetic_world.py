"""The full drawn world: everything in it appears, stands where it belongs, and its masks lie on what the picture shows."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageFilter

from data_pipeline.grammar.facts import Facts
from data_pipeline.grammar.records import TRAIN_SHARES, make_instructions
from data_pipeline.grammar.references import absent_categories
from data_pipeline.synthetic import districts
from data_pipeline.synthetic.bending import Bend
from data_pipeline.synthetic.canvas import Canvas, View
from data_pipeline.synthetic.conditions import SEASONS, Conditions
from data_pipeline.synthetic.districts import BLOCK_USES, HELD_OUT_USES, THEMES, make_full_plan
from data_pipeline.synthetic.palette import CATEGORIES, GRASSY, ROOF, Finish
from data_pipeline.synthetic.scene import draw_scene, full_heading
from data_pipeline.synthetic.shapes import Frame, Rect, box

SIZE = 160


@pytest.fixture(scope="module")
def scenes():
    """Scenes of all kinds, taken on a clear summer's day so that all is seen for what it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Conditions, "draw", classmethod(lambda cls, rng: cls()))
        return [draw_scene((5, index), SIZE, held_out=index % 4 == 3) for index in range(80)]


@pytest.fixture(scope="module")
def plans():
    """Plans of (training, held-out) scenes."""
    return [[make_full_plan(150.0, np.random.default_rng((3, index)), held_out) for index in range(60)] for held_out in (False, True)]


def _numbers(scene, *categories: str) -> list[int]:
    return [thing.number for thing in scene.objects if thing.category in categories]


def _grown(mask: np.ndarray) -> np.ndarray:
    """`mask` and the neighbours of its pixels."""
    return np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(3))) > 0


def test_every_theme_and_every_category_appears(scenes):
    assert {scene.theme for scene in scenes} == {theme for theme, _ in THEMES}
    seen = {scene.objects[number - 1].category for scene in scenes for number in np.unique(scene.object_map) if number}
    assert seen == set(CATEGORIES)


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_mask_is_where_its_thing_is_painted(scenes, category, monkeypatch):
    """Painted in another colour, a thing changes the picture on every pixel of its mask and hardly another but their neighbours."""
    index, scene = next(
        (index, scene) for index, scene in enumerate(scenes) if np.isin(scene.object_map, _numbers(scene, category)).sum() > 60
    )
    owners = _numbers(scene, category)
    surface = Canvas.surface

    def recoloured(self, colour, finish, owner=0, part=0):
        return surface(self, (255, 0, 255) if owner in owners else colour, finish, owner, part)

    monkeypatch.setattr(Canvas, "surface", recoloured)
    monkeypatch.setattr(Conditions, "draw", classmethod(lambda cls, rng: cls()))
    other = draw_scene((5, index), SIZE, held_out=index % 4 == 3)
    changed = (other.image != scene.image).any(-1)
    mask = np.isin(scene.object_map, owners)
    np.testing.assert_array_equal(other.object_map, scene.object_map)
    assert changed[mask].all()
    # Slivers thinner than a pixel colour it without owning its centre.
    assert changed[~_grown(mask)].sum() <= 0.02 * mask.sum(), (changed[~_grown(mask)].sum(), mask.sum())


def test_ships_float(scenes):
    """What surrounds a ship is the sea, or the pier and the ships beside it."""
    checked = 0
    for scene in scenes:
        wet = np.isin(scene.object_map, _numbers(scene, "sea", "ship", "pier"))
        for number in _numbers(scene, "ship"):
            mask = scene.object_map == number
            if mask.sum() < 40:
                continue
            assert wet[_grown(mask)].mean() > 0.97
            checked += 1
    assert checked > 15


def test_no_ship_lies_on_a_pier_and_no_two_touch():
    harbours = [
        plan for plan in (make_full_plan(240.0, np.random.default_rng((8, index)), index % 2 == 1) for index in range(40)) if plan.piers
    ]
    assert sum(len(plan.ships) for plan in harbours) > 60
    for plan in harbours:
        picture = Canvas(View(600, 0.8))
        picture.polygon(Rect(-300, -300, 300, 300).corners(), picture.surface((0, 0, 0), GRASSY))
        decks = picture.surface((0, 0, 0), GRASSY, owner=1)
        for pier in plan.piers:
            with picture.moved(pier.frame):
                picture.rects(pier.rects, decks)
        before = picture.surface_map() == decks
        for number, ship in enumerate(plan.ships, 2):
            hull = box(0.9 * ship.length, 0.6 * ship.width, ship.heading, ship.centre)
            picture.polygon(hull, picture.surface((0, 0, 0), GRASSY, owner=number))
            covered = picture.surface_map() != decks
            assert not (before & covered).any()
        owners = np.bincount(picture.owner_tables()[0][picture.surface_map()].ravel(), minlength=len(plan.ships) + 2)
        alone = [0.9 * ship.length * 0.6 * ship.width / 0.64 for ship in plan.ships]
        inside = [np.abs(np.array(ship.centre)).max() < 190 for ship in plan.ships]
        for area, expected, whole in zip(owners[2:], alone, inside, strict=True):
            # Of small boats the edge is too large a part.
            assert not whole or expected < 60 or area == pytest.approx(expected, rel=0.3)


def test_no_bus_drives_into_anything(plans):
    near = 0
    for plan in plans[0]:
        for bus in plan.vehicles:
            for other in plan.vehicles if bus.kind == "bus" else ():
                distance = math.dist(bus.centre, other.centre)
                if other is bus or distance > 16:
                    continue
                near += 1
                c, s = math.cos(bus.heading), math.sin(bus.heading)
                dx, dy = other.centre[0] - bus.centre[0], other.centre[1] - bus.centre[1]
                assert abs(dy * c - dx * s) > 2.2 or abs(dx * c + dy * s) > 7.0
    assert near > 20


def test_states_are_those_that_the_picture_shows(scenes):
    states: dict[str, set] = {}
    for scene in scenes:
        for thing in scene.objects:
            states.setdefault(thing.category, set()).add(thing.state)
        buildings = {thing.state for thing in scene.objects if thing.category == "building"}
        assert buildings <= ({"damaged", "intact"} if scene.theme == "disaster" else {None}) or buildings == {None}
    assert states.pop("building") == {None, "damaged", "intact"}
    assert states.pop("ship") == {"moving", "moored"}
    assert states.pop("field") == {None, "flooded"}
    assert set.union(*states.values()) == {None}


def test_ruins_and_flooded_fields_have_no_colour_and_look_unlike_whole_ones(scenes):
    roughness: dict[str, list[float]] = {"ruin": [], "intact": []}
    for scene in scenes:
        for thing in scene.objects:
            if thing.state == "flooded":
                assert thing.colour is None
            mask = scene.object_map == thing.number
            if thing.category == "building" and thing.state and mask.sum() > 100:
                grey = scene.image.mean(-1)
                inside = ~_grown(~mask)
                change = (np.abs(np.diff(grey, axis=1, append=0)) + np.abs(np.diff(grey, axis=0, append=0)))[inside]
                looks = "intact" if thing.state == "intact" else "ruin" if thing.colour is None else "torn roof"
                roughness.setdefault(looks, []).append(float(change.mean() / grey[inside].mean()))
    assert len(roughness["ruin"]) > 5
    # Broken slabs and beams change from pixel to pixel; a roof has a ridge.
    assert np.median(roughness["ruin"]) > 1.5 * np.median(roughness["intact"])


def test_what_is_called_absent_is_on_no_pixel_and_what_is_asked_for_is_there(scenes):
    for scene in scenes[:30]:
        facts = Facts(scene)
        for category in absent_categories(facts):
            assert not np.isin(scene.object_map, _numbers(scene, category)).any()
        for made in make_instructions(facts, 3, TRAIN_SHARES, np.random.default_rng(0)):
            assert all(mask.any() for mask in made.masks)


def test_parts_belong_to_aircraft_only(scenes):
    for scene in scenes:
        np.testing.assert_array_equal(scene.part_map > 0, np.isin(scene.object_map, _numbers(scene, "aircraft")))


def test_held_out_layouts_are_never_drawn_for_training(plans):
    training, held_out = plans
    assert {plan.arrangement for plan in training} == {"straight", "tree", "grid"}
    assert {plan.arrangement for plan in held_out} == {"diagonal", "crescent"}
    assert all(plan.theme == other.theme for plan, other in zip(training, held_out, strict=True))


def test_held_out_blocks_are_mixed_as_in_no_training_scene_of_the_theme():
    assert BLOCK_USES.keys() == HELD_OUT_USES.keys() == {theme for theme, _ in THEMES}
    for theme, uses in HELD_OUT_USES.items():
        assert {use for use, _ in uses} - {use for use, _ in BLOCK_USES[theme]}, theme


def test_held_out_streets_turn_more_than_any_others(plans):
    turns = [[_turn(plan) for plan in group if plan.theme not in ("airport", "harbour") and plan.roads] for group in plans]
    assert max(turns[0]) < 0.95 * np.median(turns[1])
    assert np.median(turns[0]) < 0.5 * min(turns[1])


def _turn(plan) -> float:
    """Radians by which the most bent road turns on a hundred metres."""
    most = 0.0
    for road in plan.roads:
        step = np.diff(road.line, axis=0)
        heading = np.unwrap(np.arctan2(step[:, 1], step[:, 0]))
        most = max(most, abs(heading[-1] - heading[0]) / np.linalg.norm(step, axis=1).sum() * 100)
    return most


def test_held_out_piers_and_aircraft_stand_askew(plans):
    for group, (low, high) in zip(plans, ((0.0, 0.6), (0.4, math.pi / 4)), strict=True):
        for plan in group:
            if plan.theme == "harbour":
                assert all(abs(pier.frame.heading) >= 0.42 if low else pier.frame.heading == 0 for pier in plan.piers)
        askew = [_off_axis(plane.heading) for plan in group for plane in plan.aircraft]
        assert low <= np.median(askew) <= high
    usual, unusual = ([_off_axis(plane.heading) for plan in group for plane in plan.aircraft] for group in plans)
    assert np.median(usual) < 0.2 < 0.45 < np.median(unusual)


def _off_axis(heading: float) -> float:
    """Radians to the nearest right angle."""
    rest = heading % (math.pi / 2)
    return min(rest, math.pi / 2 - rest)


def test_held_out_headings_are_apart_from_the_others():
    usual = [_off_axis(full_heading(False, np.random.default_rng(index))) for index in range(400)]
    held_out = [_off_axis(full_heading(True, np.random.default_rng(index))) for index in range(400)]
    assert max(usual) < 0.5 + 1e-9 < 0.55 < min(held_out)


def test_a_straight_bend_moves_nothing_and_a_bent_one_keeps_distances_across():
    points = np.random.default_rng(0).uniform(-60, 60, (50, 2))
    np.testing.assert_allclose(Bend.of(80.0).move(points), points, atol=1e-9)
    bend = Bend.of(80.0, 0.004, period=300.0, phase=1.0)
    across = bend.move(points + np.array([7.0, 0.0])) - bend.move(points)
    np.testing.assert_allclose(np.linalg.norm(across, axis=1), 7.0)
    frame = bend.frame_at((10.0, 20.0))
    near = bend.move(np.array([[13.0, 20.0]]))[0]
    np.testing.assert_allclose(frame.place(np.array([[3.0, 0.0]]))[0], near, atol=1e-6)


def test_a_moved_canvas_paints_in_the_frame():
    painted = Canvas(View(40, 1.0))
    painted.polygon(Rect(-50, -50, 50, 50).corners(), painted.surface((0, 0, 0), GRASSY))
    with painted.moved(Frame(math.pi / 2, (5.0, -4.0), (1.0, 2.0))):
        painted.polygon(Rect(-8, -1, 8, 1).corners(), painted.surface((9, 9, 9), GRASSY, 1))
    rows, columns = np.nonzero(painted.owner_tables()[0][painted.surface_map()])
    # Upright now, four metres wide, its middle right of and above the picture's.
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (23, 26, 8, 23)


def test_all_seasons_bands_and_faults_are_drawn():
    drawn = [Conditions.draw(np.random.default_rng(index)) for index in range(300)]
    assert {one.season for one in drawn} == {season for season, _ in SEASONS}
    assert {one.bands for one in drawn} == {"colour", "panchromatic", "false colour"}
    assert any(one.snow for one in drawn)
    assert all(one.season == "winter" for one in drawn if one.snow)
    for fault in ("blur", "vignette", "jpeg"):
        assert 10 < sum(bool(getattr(one, fault)) for one in drawn) < 200


def test_snow_whitens_roofs_and_grass_and_hides_their_colours():
    snow, clear = Conditions(season="winter", snow=1.0), Conditions()
    for finish in (GRASSY, ROOF):
        assert min(snow.look((120, 60, 40), finish)[0]) > 170
        assert clear.look((120, 60, 40), finish) == ((120, 60, 40), finish)
    assert not snow.shows_colour_of("building")
    assert snow.shows_colour_of("car")
    assert not Conditions(bands="panchromatic").shows_colour_of("car")


def test_leaves_are_bright_in_the_infrared_and_water_is_black():
    infrared = Conditions(bands="false colour")
    leaf, water = (infrared.look((60, 90, 50), Finish(material=material))[0][0] for material in ("leaf", "water"))
    assert leaf > 140
    assert water < 20


def _taken(monkeypatch, conditions: Conditions, key=(5, 21)) -> np.ndarray:
    monkeypatch.setattr(Conditions, "draw", classmethod(lambda cls, rng: conditions))
    return draw_scene(key, 128).image.astype(float)


def test_each_fault_of_the_camera_does_what_it_says(monkeypatch):
    plain = _taken(monkeypatch, Conditions(noise=0.0))
    noisy = _taken(monkeypatch, Conditions(noise=6.0))
    assert 4.0 < (noisy - plain).std() < 8.0
    sharpness = np.abs(np.diff(plain, axis=1)).mean()
    assert np.abs(np.diff(_taken(monkeypatch, Conditions(noise=0.0, blur=0.9)), axis=1)).mean() < 0.8 * sharpness
    grey = _taken(monkeypatch, Conditions(bands="panchromatic", jpeg=None))
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])
    dimmed = _taken(monkeypatch, Conditions(noise=0.0, vignette=0.25)) / np.maximum(plain, 1)
    assert np.median(dimmed[:8, :8]) < 0.82 < 0.97 < np.median(dimmed[60:68, 60:68])
    hazy = _taken(monkeypatch, Conditions(noise=0.0, haze=0.3))
    assert hazy.std() < 0.85 * plain.std()
    stored = _taken(monkeypatch, Conditions(noise=0.0, jpeg=50))
    assert 0 < np.abs(stored - plain).mean() < 12


def test_masks_do_not_depend_on_the_weather(monkeypatch):
    maps = []
    for conditions in (Conditions(), Conditions(season="winter", snow=1.0, bands="panchromatic", blur=0.8)):
        monkeypatch.setattr(Conditions, "draw", classmethod(lambda cls, rng, taken=conditions: taken))
        maps.append(draw_scene((5, 21), 96).object_map)
    # Winter's forests have other crowns, which may hide other pixels; all else is the same.
    assert (maps[0] == maps[1]).mean() > 0.95


def test_large_land_is_divided_into_districts():
    plan = make_full_plan(1500.0, np.random.default_rng(4), held_out=False)
    assert any(road.width > 12 for road in plan.roads)
    assert len(plan.buildings) > 200


def test_districts_of_every_theme_have_mixtures():
    assert {theme for theme, _ in districts._DISTRICT_THEMES} <= BLOCK_USES.keys()


@pytest.mark.slow
def test_the_largest_picture_fits_into_six_gigabytes():
    program = (
        "import resource, numpy as np; from data_pipeline.synthetic.scene import draw_scene; scene = draw_scene((5, 9), 8192);"
        "assert scene.image.shape == (8192, 8192, 3) and len(np.unique(scene.object_map)) > 1000;"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peak = int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
    assert 1e9 < peak * 1024 < 6e9
