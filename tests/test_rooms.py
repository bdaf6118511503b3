"""Rooms: homes, shortest paths, collisions, the picture, the game and the walks through it"""

import itertools
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as some
from mutants import mutant
from scipy.sparse import csgraph, csr_matrix
from scipy.spatial import cKDTree

from metabonk.core.errors import UsageError
from metabonk.play import homes, plans, raycast, rooms
from metabonk.play.game import games, make_game
from metabonk.play.homes import SPLITS, Home, make_home
from metabonk.play.plans import BODY, Plan, make_plan
from metabonk.play.policies import make_policy
from metabonk.play.synchrony import offset
from metabonk.play.walks import Walk
from metabonk.record.exchange import from_dataset, to_dataset
from metabonk.record.recorder import record
from metabonk.record.store import Store

pytestmark = pytest.mark.filterwarnings("ignore")
FEW = (0, 14, 61, 75)  # scenes of all splits


def small(**config):
    "A game whose picture costs little"
    return make_game("rooms", **{"image_size": (8, 8), "sample_rate": 0, **config})


def hand_made(doors, boxes=((3.5, 0.5, 4.1, 1.1, 0.7),)):
    "Two rooms side by side, 3 x 3 m each, the telephone in the second"
    return Home(-1, np.array([[0.0, 0, 3, 3], [3.0, 0, 6, 3]]), list(doors), np.array(boxes))


DOOR = homes.Door(0, 1, 0, 3.0, 1.0, 2.0)


# --- homes


def test_a_scene_is_the_same_for_the_same_number_and_no_two_are_alike():
    shapes = set()
    for number in itertools.chain(*SPLITS.values()):
        first, again = make_home.__wrapped__(number), make_home.__wrapped__(number)
        assert all((getattr(first, name) == getattr(again, name)).all() for name in ("rooms", "boxes"))
        assert (first.doors, first.height, first.absorption) == (again.doors, again.height, again.absorption)
        shapes.add((first.rooms.tobytes(), first.boxes.tobytes()))
    assert len(shapes) == 90


def test_splits_are_6_1_2_and_never_overlap():
    sizes = [len(numbers) for numbers in SPLITS.values()]
    assert sizes == [60, 10, 20] and len(set().union(*SPLITS.values())) == 90
    assert homes.scene_numbers("all") == tuple(range(90)) and homes.scene_numbers(7) == (7,)
    for name, numbers in SPLITS.items():
        game = small(scenes=name)
        drawn = {game.reset(seed=seed)[1]["probes"]["scene"] for seed in range(40)}
        assert drawn <= set(numbers) and len(drawn) > 5


def test_rooms_fill_the_home_and_doors_lie_between_the_rooms_they_name():
    for number in range(90):
        home = make_home(number)
        sides = home.rooms[:, 2:] - home.rooms[:, :2]
        whole = home.rooms[:, 2:].max(0) - home.rooms[:, :2].min(0)
        assert sides.prod(1).sum() == pytest.approx(whole.prod()) and sides.min() >= homes.SMALLEST - 1e-9
        assert len(home.rooms) >= 3
        for door in home.doors:
            middle = (door.low + door.high) / 2
            for room, nudge in ((door.first, -1e-6), (door.second, 1e-6)):
                at = (door.at + nudge, middle) if door.axis == 0 else (middle, door.at + nudge)
                assert home.room(*at) == room


def test_every_free_place_of_every_home_leads_to_the_telephone():
    for number in range(90):
        plan, rng = make_plan(number), np.random.default_rng(number)
        low, high = plan.space.within[:2], plan.space.within[2:]
        points = [p for p in rng.uniform(low, high, (60, 2)) if plan.space.free(*p)]
        assert len(points) > 20 and np.isfinite([plan.to_source.distance(*p) for p in points]).all()


def test_a_source_that_cannot_be_reached_is_one_clear_error():
    with pytest.raises(UsageError, match=r"source at \(3.80, 0.80\) can't be reached from room 0: add a door"):
        Plan(hand_made([]))
    Plan(hand_made([DOOR]))
    blocked = ((3.5, 0.5, 4.1, 1.1, 0.7), (2.5, 0.9, 2.9, 2.1, 0.7))  # a chest before the door, on its one side
    with pytest.raises(UsageError, match="room 0"):
        Plan(hand_made([DOOR], blocked))


# --- shortest paths


def grid_distances(plan: Plan, points: np.ndarray, step: float = 0.1) -> np.ndarray:
    "Lengths to the source over a fine grid with 32 neighbours; none is shorter than the shortest path"
    low, high = plan.space.within[:2], plan.space.within[2:]
    counts = np.ceil((high - low) / step).astype(int)
    nodes = np.stack(np.meshgrid(*(np.arange(c) * step for c in counts), indexing="ij"), -1).reshape(-1, 2) + low
    nodes = nodes[[plan.space.free(*node) for node in nodes]]
    nodes = np.concatenate([nodes, points, [plan.home.source[:2]]])
    tree = cKDTree(nodes)
    pairs = tree.query_pairs(3.7 * step, output_type="ndarray")
    table = np.delete(plan.space.blocks, plan.space.boxes[0], axis=0)
    source = len(nodes) - 1
    seen = [plans.clear(*nodes[a], *nodes[b], table if source in (a, b) else plan.space.blocks) for a, b in pairs]
    pairs = pairs[seen]
    near = np.flatnonzero(np.hypot(*(nodes - nodes[-1]).T) < 1.5)  # the table stands in the grid's way
    near = [n for n in near if n != source and plans.clear(*nodes[n], *nodes[-1], table)]
    pairs = np.concatenate([pairs, [(n, source) for n in near]])
    lengths = np.hypot(*(nodes[pairs[:, 0]] - nodes[pairs[:, 1]]).T)
    graph = csr_matrix((np.maximum(lengths, 1e-12), pairs.T), (len(nodes),) * 2)
    graph = graph.maximum(graph.T)
    return csgraph.dijkstra(graph, directed=False, indices=source)[len(nodes) - 1 - len(points) : -1]


@pytest.mark.parametrize("number", [3, 75])
def test_shortest_paths_agree_with_a_fine_grid(number):
    plan, rng = make_plan(number), np.random.default_rng(number)
    points = np.array([plan.draw_point(rng) for _ in range(30)])
    exact = np.array([plan.to_source.distance(*p) for p in points])
    grid = grid_distances(plan, points)
    assert (exact <= grid + 1e-9).all(), "the grid is longer than the shortest path or equal"
    assert (grid <= 1.03 * exact + 0.05).all(), "by little"


@pytest.mark.parametrize("number", FEW)
def test_a_path_is_as_long_as_its_distance_and_free_all_along(number):
    plan, rng = make_plan(number), np.random.default_rng(number)
    for goal in (None, plan.draw_point(rng)):
        routes = plan.to_source if goal is None else plan.space.routes(*goal)
        for _ in range(20):
            path = routes.path(*plan.draw_point(rng))
            legs = np.hypot(*np.diff(path, axis=0).T)
            assert legs.sum() == pytest.approx(routes.distance(*path[0]))
            blocks = [plan.space.blocks] * (len(path) - 2) + [routes.last]
            assert all(plans.clear(*a, *b, near) for a, b, near in zip(path, path[1:], blocks, strict=False))


def test_distance_to_a_point_is_that_from_it():
    plan, rng = make_plan(9), np.random.default_rng(0)
    for _ in range(20):
        a, b = plan.draw_point(rng), plan.draw_point(rng)
        assert plan.space.routes(*a).distance(*b) == pytest.approx(plan.space.routes(*b).distance(*a))


# --- collisions


@settings(max_examples=40, deadline=None)
@given(some.integers(0, 89), some.integers(0, 2**31 - 1), some.floats(0, 1))
def test_a_walker_is_never_inside_anything(number, seed, ahead):
    plan, rng = make_plan(number), np.random.default_rng(seed)
    x, y = plan.draw_point(rng)
    heading, met = rng.uniform(-np.pi, np.pi), 0
    for _ in range(150):
        heading += 0 if rng.random() < 0.3 + 0.6 * ahead else rng.uniform(-2, 2)
        dx, dy = 0.4 * math.cos(heading), 0.4 * math.sin(heading)
        to_x, to_y, hit = plans.slide(x, y, dx, dy, plan.space.blocks)
        assert plan.space.free(to_x, to_y), "inside a wall"
        assert math.hypot(to_x - x, to_y - y) <= 0.4 + 1e-9, "a wall does not push"
        assert hit or (to_x, to_y) == pytest.approx((x + dx, y + dy))
        assert plans.clear(x, y, to_x, to_y, plan.air.blocks), "through a wall"
        x, y, met = to_x, to_y, met + hit
        body = np.array([x - BODY, y - BODY, x + BODY, y + BODY])
        assert all(homes._apart(body, box, -1e-8) for box in plan.home.boxes)


def test_commanded_and_realised_motion_part_at_a_wall_and_nowhere_else():
    game = small(scenes="train", max_steps=None, actions=("forward", "left", "right"))
    rng, parted = np.random.default_rng(0), 0
    for seed in range(10):
        _, info = game.reset(seed=seed)
        for _ in range(150):
            old = info["probes"]
            *_, info = game.step(int(rng.choice([0, 0, 0, 1, 2])))
            new = info["probes"]
            cos, sin = math.cos(old["heading"]), math.sin(old["heading"])
            x = old["x"] + cos * new["realised_x"] - sin * new["realised_y"]
            y = old["y"] + sin * new["realised_x"] + cos * new["realised_y"]
            assert (x, y) == pytest.approx((new["x"], new["y"])), "turned by the heading before the step"
            assert rooms.wrapped(old["heading"] + new["realised_turn"] - new["heading"]) == pytest.approx(0, abs=1e-12)
            same = [new[f"commanded_{k}"] == pytest.approx(new[f"realised_{k}"], abs=1e-9) for k in ("x", "y", "turn")]
            assert all(same) or new["collided"]
            parted += not all(same)
    assert parted > 20, "walls must have been met"


def test_motions_that_are_added_without_turning_end_elsewhere():
    game = small(max_steps=None, actions=("forward", "left", "right"))
    _, info = game.reset(seed=4)
    start, rows = info["probes"], []
    for action in [0, 1, 1, 1] * 12:
        *_, info = game.step(action)
        rows.append(info["probes"])
    composed = complex(0, 0)
    heading = 0.0
    for row in rows:
        composed += complex(row["realised_x"], row["realised_y"]) * np.exp(1j * heading)
        heading += row["realised_turn"]
    there = complex(rows[-1]["x"] - start["x"], rows[-1]["y"] - start["y"])
    assert composed * np.exp(1j * start["heading"]) == pytest.approx(there, abs=1e-9)
    added = complex(sum(row["realised_x"] for row in rows), sum(row["realised_y"] for row in rows))
    assert abs(added * np.exp(1j * start["heading"]) - there) > 0.5


# --- where the source is


def test_the_bearing_is_positive_on_the_left_and_follows_turns():
    game = small(empty=True, actions=("forward", "left", "right"))
    _, info = game.reset(seed=0)
    probes = info["probes"]
    ahead = math.atan2(probes["source_y"] - probes["y"], probes["source_x"] - probes["x"])
    assert rooms.wrapped(ahead - probes["heading"] - probes["bearing"]) == pytest.approx(0, abs=1e-12)
    *_, after = game.step(1)
    turned = rooms.wrapped(after["probes"]["bearing"] - probes["bearing"])
    assert turned == pytest.approx(-rooms.TURN), "who turns left finds the source farther to the right"
    left = np.array([-math.sin(probes["heading"]), math.cos(probes["heading"])])
    to_source = np.array([probes["source_x"] - probes["x"], probes["source_y"] - probes["y"]])
    assert np.sign(left @ to_source) == np.sign(math.sin(probes["bearing"]))


def test_sound_goes_through_doors_and_arrives_from_the_opening():
    plan = Plan(hand_made([DOOR]))
    beside = plan.heard(5.0, 2.0)
    assert (beside.room, beside.x, beside.y, beside.before, beside.detour) == (1, *plan.home.source[:2], 0.0, 0.0)
    hidden = plan.heard(1.0, 0.5)
    assert hidden.room == 0 and hidden.x == pytest.approx(3, abs=1e-3) and hidden.y == pytest.approx(1, abs=1e-3)
    assert hidden.before == pytest.approx(math.hypot(0.8, 0.2), abs=1e-3) and hidden.detour > 0.05 and not hidden.seen
    through = plan.heard(2.0, 1.6)  # seen through the door: straight, and no loss
    assert through.seen and through.detour == 0 and through.x == pytest.approx(3)
    whole = through.before + math.hypot(through.x - 2.0, through.y - 1.6)
    assert whole == pytest.approx(math.hypot(3.8 - 2.0, 0.8 - 1.6))


def test_sound_grows_weaker_with_its_way_through_doors():
    plan = Plan(hand_made([DOOR]))
    deaf = rooms.AcousticsConfig(tail=False, order=0)
    levels = []
    for x, y in ((4.5, 1.0), (3.2, 1.4), (2.0, 1.6), (1.5, 0.5)):
        heard = plan.heard(x, y)
        response = rooms.acoustics(plan.home, heard.room, deaf).response((x, y, 0.0), rooms.arrival(plan.home, heard, x, y))
        way = heard.before + math.hypot(heard.x - x, heard.y - y)
        levels.append(10 * math.log10((response**2).sum()) + 20 * math.log10(way))
    assert np.ptp(levels[:3]) < 4, "what is seen is as loud as its distance says, through a door or not"
    assert levels[3] < min(levels[:3]) - 4, "what is behind the frame is weaker"


@pytest.mark.parametrize("number", FEW)
def test_sound_comes_from_a_point_of_the_listeners_room_without_jumps_in_its_way(number):
    plan, rng = make_plan(number), np.random.default_rng(number)
    for _ in range(60):
        x, y = plan.draw_point(rng)
        heard = plan.heard(x, y)
        x0, y0, x1, y1 = plan.home.rooms[heard.room]
        assert x0 <= heard.x <= x1 and y0 <= heard.y <= y1
        whole = heard.before + math.hypot(heard.x - x, heard.y - y)
        straight = math.dist((x, y), plan.home.source[:2])
        assert whole == pytest.approx(straight + heard.detour) and heard.detour >= 0
        assert whole <= plan.to_source.distance(x, y) + 1e-3, "sound needs less room than a body"
        other = plan.heard(x + 1e-5, y)
        if other.room == heard.room:
            moved = other.before + math.hypot(other.x - x - 1e-5, other.y - y)
            assert moved == pytest.approx(whole, abs=1e-4)


# --- the picture


def slow_wall(home: Home, x: float, y: float, angle: float) -> float:
    "The nearest piece of wall along a ray, tried one by one"
    dx, dy, best = math.cos(angle), math.sin(angle), math.inf
    for x0, y0, x1, y1 in home.walls.tolist():
        if x0 == x1 and dx:
            t = (x0 - x) / dx
            hit = t > 0 and y0 <= y + t * dy <= y1
        elif y0 == y1 and dy:
            t = (y0 - y) / dy
            hit = t > 0 and x0 <= x + t * dx <= x1
        else:
            continue
        best = min(best, t) if hit else best
    return best


def test_rays_meet_the_walls_that_the_floor_plan_has():
    rng = np.random.default_rng(0)
    for number in FEW:
        plan = make_plan(number)
        scene = raycast.paint(plan.home)
        for _ in range(100):
            (x, y), angle = plan.draw_point(rng), rng.uniform(-math.pi, math.pi)
            found = raycast.wall_depth(scene, x, y, angle, plan.home.room(x, y))
            assert found == pytest.approx(slow_wall(plan.home, x, y, angle), rel=1e-12)


def test_the_foot_of_a_wall_is_in_the_row_that_perspective_says():
    home = hand_made([])
    scene = raycast.paint(home)
    for distance in (1.0, 2.0, 2.5):
        image = raycast.look(scene, 3 - distance, 1.5, 0.0, 0, (128, 128))
        skirting = np.flatnonzero((image[:, 64].std(1) < 1) & (image[:, 64].mean(1) < 61))
        foot = 64 + 64 * plans.EYE / distance
        if foot < 128:
            assert skirting.max() + 1 == pytest.approx(foot, abs=1), distance


def slow_picture(home: Home, scene: raycast.Scene, x: float, y: float, heading: float, size: int) -> np.ndarray:
    "Every pixel by itself: the nearest of all surfaces in space, told by nothing but the floor plan"
    image = np.zeros((size, size, 3))
    doors = [homes._opening(door) for door in home.doors]
    upright = [(*w, 0.0, home.height) for w in home.walls.tolist()]
    upright += [(*d, homes.DOOR_TOP, home.height) for d in np.array(doors).tolist()]
    for row, column in np.ndindex(size, size):
        off, dz = 1 - (2 * column + 1) / size, 1 - (2 * row + 1) / size
        dx, dy = math.cos(heading) - off * math.sin(heading), math.sin(heading) + off * math.cos(heading)
        best, colour = (home.height if dz > 0 else 0.0) - plans.EYE, None
        best = best / dz
        here = home.room(x + best * dx, y + best * dy)
        if dz > 0:
            colour = scene.ceilings[here]
        else:
            u, v = (int((p + best * d) / raycast.TILE * 64) % 64 for p, d in ((x, dx), (y, dy)))
            colour = scene.floors[here][v, u] / (1 + raycast.FADE * best)
        for x0, y0, x1, y1, low, high in upright:
            t = (x0 - x) / dx if x0 == x1 else (y0 - y) / dy
            place = y + t * dy if x0 == x1 else x + t * dx
            z = plans.EYE + t * dz
            if 0 < t < best and (y0 <= place <= y1 if x0 == x1 else x0 <= place <= x1) and low <= z <= high:
                near = home.room(x + (t - 1e-6) * dx, y + (t - 1e-6) * dy)
                down = min(63, int((home.height - z) / home.height * 64))
                light = (1.0 if x0 == x1 else 0.82) / (1 + raycast.FADE * t)
                best, colour = t, scene.papers[near][down, int(place / raycast.TILE * 64) % 64] * light
        for box, paint in zip(scene.boxes, scene.colours, strict=True):
            times = [sorted(((box[k] - p) / d, (box[k + 2] - p) / d)) for k, p, d in ((0, x, dx), (1, y, dy))]
            times.append(sorted((box[k] - plans.EYE) / dz for k in (4, 5)))
            enters, leaves = max(t[0] for t in times), min(t[1] for t in times)
            if 0 < enters < leaves and enters < best:
                axis, front = [t[0] for t in times].index(enters), max(times[0][0], times[1][0])
                face = int(times[1][0] > times[0][0])
                best = enters
                colour = paint * (1.1 if axis == 2 else 1.0) * (0.82 if face else 1.0) / (1 + raycast.FADE * front)
        image[row, column] = colour
    return image


@pytest.mark.parametrize("number", [7, 14, 75])
def test_pictures_agree_with_rays_through_every_pixel(number):
    plan, rng = make_plan(number), np.random.default_rng(number)
    scene = raycast.paint(plan.home)
    for pose in range(6):
        x, y = plan.draw_point(rng, 0.0, 2.5 if pose % 2 else math.inf)
        heading = rng.uniform(-math.pi, math.pi)
        if pose % 2:
            heading = math.atan2(plan.home.source[1] - y, plan.home.source[0] - x) + rng.uniform(-0.5, 0.5)
        fast = raycast.look(scene, x, y, heading, plan.home.room(x, y), (32, 32)).astype(float)
        slow = slow_picture(plan.home, scene, x, y, heading, 32)
        assert (np.abs(fast - slow).max(2) > 2).mean() < 0.02, "edges may fall into the next pixel"


def red(image: np.ndarray) -> np.ndarray:
    "Where the telephone is"
    return (image[..., 0] > 2.2 * image[..., 1]) & (image[..., 0] > 2.2 * image[..., 2]) & (image[..., 0] > 60)


def test_the_telephone_is_seen_on_the_side_on_which_it_is_and_only_if_nothing_hides_it():
    rng, shown, hidden = np.random.default_rng(0), 0, 0
    for number in FEW:
        plan = make_plan(number)
        scene = raycast.paint(plan.home)
        for _ in range(40):
            x, y = plan.draw_point(rng, 1.0, 5.0)
            direction = math.atan2(plan.home.source[1] - y, plan.home.source[0] - x)
            for off in (-0.4, 0.0, 0.4):
                seen = red(raycast.look(scene, x, y, direction - off, plan.home.room(x, y), (64, 64)))
                visible = plan.heard(x, y).seen
                if not visible:
                    hidden += 1
                    continue
                if seen.any():  # a low box can stand before it
                    shown += 1
                    columns = np.flatnonzero(seen.any(0))
                    expected = 32 - 32 * math.tan(off)
                    assert abs(columns.mean() + 0.5 - expected) < 3 or columns.max() - columns.min() > 8
    assert shown > 50 and hidden > 50


def test_a_telephone_behind_a_wall_is_not_red():
    home = hand_made([DOOR])
    scene = raycast.paint(home)
    assert not red(raycast.look(scene, 1.0, 0.5, 0.0, 0, (64, 64))).any()
    assert red(raycast.look(scene, 4.8, 2.0, -2.4, 1, (64, 64))).any()


def test_pictures_do_not_depend_on_sound():
    actions, shown = [0, 1, 0, 0, 2, 0, 1, 1, 0], []
    for config in ({}, {"sample_rate": 0}, {"order": 1, "tail": False}):
        game = make_game("rooms", **config)
        shown.append([game.reset(seed=5)[0]["image"], *(game.step(action)[0]["image"] for action in actions)])
    assert all((a == b).all() for other in shown[1:] for a, b in zip(shown[0], other, strict=True))
    assert (shown[0][0] != shown[0][-1]).any()


# --- the game


def test_gymnasium_accepts_it_and_it_is_listed():
    check_env(make_game("rooms"))
    check_env(small(image_size=(128, 128)))
    assert {"game": "rooms", "about": "generated homes, first person, two ears", "status": "ready"} in games()


def played(game, seed=3, actions=(0, 0, 1, 0, 2, 2, 0, 0)):
    "What an episode shows and sounds like"
    rows = [game.reset(seed=seed)]
    rows += [(step[0], step[4]) for step in map(game.step, actions)]
    return [(o["image"].tobytes(), o["audio"].tobytes(), repr(i["probes"]), i["clock"]) for o, i in rows]


def test_the_same_seed_is_the_same_episode_and_another_is_another():
    assert played(make_game("rooms")) == played(make_game("rooms"))
    assert played(make_game("rooms"))[0] != played(make_game("rooms"), seed=4)[0]


def test_every_step_has_2400_samples_of_each_ear():
    game = make_game("rooms")
    observation, info = game.reset(seed=0)
    for step in range(1, 20):
        assert observation["audio"].shape == (2, 2400) and observation["audio"].any()
        assert info["clock"] == {"ticks": 3 * step, "samples": 2400 * step}
        observation, *_, info = game.step(step % 3)
    assert game.metadata["render_fps"] == pytest.approx(1 / 0.15)


def test_a_snapshot_brings_back_picture_and_sound():
    game = make_game("rooms")
    game.reset(seed=2)
    for action in (0, 1, 0, 0):
        game.step(action)
    kept, image = game.snapshot(), game.render().copy()
    futures = []
    for _ in range(2):
        steps = [game.step(action) for action in (0, 2, 0, 0, 1)]
        futures.append(hash(tuple((o["image"].tobytes(), o["audio"].tobytes(), r, repr(i)) for o, r, *_, i in steps)))
        game.reset(seed=9)  # another home
        game.restore(kept)
        assert (game.render() == image).all()
    assert futures[0] == futures[1]


def test_sound_goes_on_from_step_to_step():
    game = make_game("rooms", empty=True, actions=("noop", "left"), max_steps=None)
    observation, _ = game.reset(seed=1)
    pieces = [observation["audio"], *(game.step(0)[0]["audio"] for _ in range(16))]
    stream = np.concatenate(pieces, 1).astype(float)
    seams = np.abs(np.diff(stream))[:, 2399::2400]
    assert seams.max() <= np.abs(np.diff(stream)).max()
    turn = 8 * 2400  # the ring is 1.2 s long: who stands still hears it again
    assert (stream[:, :turn] == stream[:, turn : 2 * turn]).all()


def test_a_turn_is_seen_and_heard_in_the_step_in_which_it_is_made():
    late = offset("rooms", "left", before=3, ticks=4, actions=("noop", "left"), empty=True)
    assert late.seen == 150 and 0 < late.heard < 1, "milliseconds after the step began"


def louder_left(audio: np.ndarray) -> float:
    "dB by which the left ear hears more"
    energy = (audio.astype(float) ** 2).sum(1) + 1e-9
    return float(10 * np.log10(energy[0] / energy[1]))


def test_a_source_on_the_left_is_louder_in_the_left_ear():
    game = make_game("rooms", empty=True, actions=("noop", "left"), max_steps=None, tail=False)
    _, info = game.reset(seed=3)
    told = []
    for _ in range(36):
        steps = [game.step(action) for action in (1, 0, 0, 0, 0, 0, 0, 0)]
        stream = np.concatenate([step[0]["audio"] for step in steps[1:]], 1)
        told.append((math.sin(steps[-1][4]["probes"]["bearing"]), louder_left(stream)))
    side, level = np.array(told).T
    clear = np.abs(side) > 0.4
    assert (np.sign(side) == np.sign(level))[clear].all() and np.corrcoef(side, level)[0, 1] > 0.9


def test_success_needs_a_stop_near_the_source():
    game = small(pattern="from_source", empty=True, max_steps=None)
    _, info = game.reset(seed=0)
    assert info["probes"]["distance"] < 1
    *_, terminated, truncated, info = game.step(1)
    assert not terminated and info["probes"]["success"] == 0, "being near is not enough"
    _, reward, terminated, _, info = game.step(3)
    assert terminated and info["probes"]["success"] == 1 and reward == pytest.approx(10 - 0.01)
    far = small(pattern="to_source", empty=True)
    _, info = far.reset(seed=0)
    _, reward, terminated, _, info = far.step(3)
    assert terminated and info["probes"]["success"] == 0 and reward == pytest.approx(-0.01)


def test_reward_is_progress_along_the_shortest_path():
    game = small(pattern="to_source")
    walk = Walk(game, noise=0.3)
    observation, info = game.reset(seed=11)
    start, total, steps, over = info["probes"]["distance"], 0.0, 0, False
    while not over:
        observation, reward, terminated, truncated, info = game.step(walk(observation, info))
        total, steps, over = total + reward, steps + 1, terminated or truncated
    assert info["probes"]["success"] == 1
    assert total == pytest.approx(-0.01 * steps + start - info["probes"]["distance"] + 10)


def test_the_first_step_is_no_action_of_the_player():
    game = small(sample_rate=None)
    _, info = game.reset(seed=0)
    assert info["executed"] == -1 and game.action_names == ["forward", "left", "right", "stop"]
    assert not any(info["probes"][f"{kind}_{axis}"] for kind in ("commanded", "realised") for axis in ("x", "y", "turn"))
    silent = small().reset(seed=0)[1]["probes"]
    assert (silent["x"], silent["y"], silent["heading"]) == tuple(info["probes"][k] for k in ("x", "y", "heading"))


def test_the_empty_room_has_nothing_that_hides():
    game = small(empty=True)
    for seed in range(10):
        probes = game.reset(seed=seed)[1]["probes"]
        home = game.machine.plan.home
        assert probes["visible"] == 1 and len(home.rooms) == 1 and len(home.boxes) == 1 and not home.doors
        straight = math.hypot(probes["source_x"] - probes["x"], probes["source_y"] - probes["y"])
        assert probes["distance"] == pytest.approx(straight)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"scenes": "tset"}, "unknown split 'tset': did you mean 'test'"),
        ({"scenes": ()}, "at least one"),
        ({"scenes": (3, -1)}, "numbers from 0"),
        ({"scenes": -1}, "numbers from 0"),
        ({"pattern": "to_sauce"}, "did you mean 'to_source'"),
        ({"sample_rate": 44_100}, "rooms sound at 16000 Hz, not at 44100"),
        ({"actions": ("forward", "jump")}, "unknown action of rooms 'jump'"),
        ({"furnitre": False}, "did you mean 'furniture'"),
        ({"profile": "generic"}, "profiles are for Game Boy games"),
    ],
)
def test_bad_settings_are_one_clear_line(config, told):
    with pytest.raises(UsageError, match=told) as caught:
        make_game("rooms", **config)
    assert "\n" not in str(caught.value)


def test_a_point_that_no_home_has_is_one_clear_error():
    with pytest.raises(UsageError, match="no free point 50.0 to inf m from the source"):
        make_plan(0).draw_point(np.random.default_rng(0), 50.0)


def test_planted_errors_are_caught(monkeypatch):
    "Each in the machine or the motion, each by the test that is named"
    planted = [
        (rooms.Rooms, "tick", "stop and after", "after", test_success_needs_a_stop_near_the_source),
        (rooms.Rooms, "tick", "before.distance - after.distance", "after.distance - before.distance",
         test_reward_is_progress_along_the_shortest_path),
        (rooms, "moved", "cos * dx + sin * dy", "dx", test_commanded_and_realised_motion_part_at_a_wall_and_nowhere_else),
        (rooms, "moved", "moment.heading + turn", "moment.heading - turn",
         test_the_bearing_is_positive_on_the_left_and_follows_turns),
        (rooms, "arrival", "heard.before, doorway", "0.0, doorway", test_sound_grows_weaker_with_its_way_through_doors),
        (rooms.Rooms, "tick", "self._be(after._replace(success=success))",
         "heard = self._hear(); self._be(after._replace(success=success)); return Tick(heard, 0.0, stop, False)",
         test_a_turn_is_seen_and_heard_in_the_step_in_which_it_is_made),
        (rooms.Rooms, "save_state", " + self._listener.state()", " + Listener(telephone_ring()).state()",
         test_a_snapshot_brings_back_picture_and_sound),
    ]  # fmt: skip
    for where, name, old, new, caught in planted:
        with monkeypatch.context() as patch:
            patch.setattr(where, name, mutant(getattr(where, name), old, new))
            with pytest.raises(AssertionError):
                caught()


# --- walks


def walked(game, walk, seed):
    "The last probes of a walk, and its length"
    observation, info = game.reset(seed=seed)
    walk.reset(seed)
    for steps in itertools.count(1):
        observation, _, terminated, truncated, info = game.step(walk(observation, info))
        if terminated or truncated:
            return info["probes"], steps, terminated


@pytest.mark.parametrize("pattern", rooms.PATTERNS)
def test_walks_lead_where_their_pattern_says(pattern):
    game = small(pattern=pattern, scenes=tuple(range(90)))
    walk = make_policy("walks", game)
    for seed in range(30):
        first = game.reset(seed=seed)[1]["probes"]
        goal = game.machine.moment.goal_x, game.machine.moment.goal_y
        last, steps, stopped = walked(game, walk, seed)
        assert stopped and steps < 500
        if pattern == "to_source":
            assert last["success"] == 1 and first["distance"] >= 2
        else:
            assert math.dist((last["x"], last["y"]), goal) < 0.2
        if pattern == "from_source":
            assert first["distance"] <= 1
        if pattern == "random":
            assert max(first["distance"], last["distance"]) < 8.2


def test_a_walk_without_noise_is_hardly_longer_than_the_shortest_path():
    game = small(pattern="to_source")
    ratios = []
    for seed in range(20):
        start = game.reset(seed=seed)[1]["probes"]["distance"]
        walk, length, over = Walk(game, noise=0.0), 0.0, False
        observation, info = game.reset(seed=seed)
        while not over:
            observation, _, over, _, info = game.step(walk(observation, info))
            length += math.hypot(info["probes"]["realised_x"], info["probes"]["realised_y"])
        ratios.append(length / (start - info["probes"]["distance"]))
    assert 0.99 < np.mean(ratios) < 1.05 and max(ratios) < 1.15


def test_walks_need_rooms_and_their_actions():
    with pytest.raises(UsageError, match="walks through rooms, not bonk"):
        make_policy("walks", make_game("bonk"))
    with pytest.raises(UsageError, match="stop is missing"):
        make_policy("walks", small(actions=("forward", "left", "right")))
    with pytest.raises(UsageError, match="noise is a probability"):
        Walk(small(), noise=1.0)


def test_a_recording_tells_scene_and_motion(tmp_path):
    settings = {"image_size": (8, 8), "scenes": "valid"}
    record("rooms", tmp_path / "s", "walks", episodes=6, settings=settings, seed=1)
    store = Store.open(tmp_path / "s")
    scenes = set()
    for episode in store.episodes:
        batch = store.read(episode)
        scenes |= set(batch.probes["scene"].tolist())
        assert len(set(batch.probes["pattern"].tolist())) == 1
        assert episode.rows <= 500 and batch.terminated[-1] and (batch.action[1:-1] < 3).all() and batch.action[-1] == 3
    assert scenes <= set(SPLITS["valid"]) and len(scenes) > 1
    back = from_dataset(to_dataset(store), tmp_path / "back")
    for episode, other in zip(store.episodes, back.episodes, strict=True):
        one, two = store.read(episode), back.read(other)
        assert (one.image == two.image).all() and one.probes.keys() == two.probes.keys()
        assert all((a == b).all() for a, b in zip(one.audio, two.audio, strict=True))


# --- other machines

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
          "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")  # may read all of it, write nothing  # fmt: skip


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="only root becomes another user")
def test_another_user_without_a_writable_package_plays(tmp_path):
    "Also if numba, which reads where its cache is, was imported before anything of ours"
    tmp_path.chmod(0o777)
    code = "import numba; from metabonk.play.game import make_game; print(make_game('rooms').reset(seed=0)[0]['image'].shape)"
    hidden = {"HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"}
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    given = {"TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([*NOBODY, sys.executable, "-c", code], cwd=tmp_path, text=True, env={**kept, **given},
                          capture_output=True, timeout=120)  # fmt: skip
    assert done.returncode == 0 and "(64, 64, 3)" in done.stdout, done.stderr
    assert list(tmp_path.rglob("*.nbi")), "what was compiled is kept"
